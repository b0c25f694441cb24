"""Sampling of latents: guidance and schedulers of diffusers take the network from noise to latents, step by step.

Classifier-free guidance acts on all latent channels. (The authors' code guides three of four.) Guidance by routing leads away
from a weaker pass of the same prompt: v_route + w (v_full - v_route), each step and image with other tokens.
Each image has its own seed: its noise is drawn by itself, on the CPU and in float32, so that it depends neither on the
batch nor on the device. The latents stay in float32 between the steps; the network computes in the dtype of its weights.

Source: Ho and Salimans 2022 (guidance), Lu et al. 2022 (DPM-Solver++), Song et al. 2020 (DDIM), Xue et al. 2023 (SA-Solver),
Luo et al. 2023 (LCM).
Shapes: B images, C latent channels, h x w the sides of the latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from foundry.errors import UserError
from model.dit_config import FewSteps

if TYPE_CHECKING:
    import torch

    from model.diffusion import Objective
    from model.dit import Captions, DiT
    from model.dit_config import RoutedBlocks

OnStep = Callable[[int, float, "torch.Tensor"], None]
"""Called after each step with its index from 0, its timestep in 0..1000 and the latents (B, C, h, w), which it may read."""
Predictor = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""Guided prediction (B, C, h, w) in float32 of latents (B, C, h, w) and a timestep () or (B,)."""
GuidanceBy = Literal["prompt", "routing"]
_ADDED = ("shift", "guidance_by")
"""Settings that earlier versions did not have."""
SAMPLERS = ("dpm-solver++", "ddim", "euler", "sa-solver", "lcm")
_STOCHASTIC = ("sa-solver", "lcm")
"""Samplers that draw noise on the way."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Sampler settings. The defaults are the paper's, or those of a network that was distilled to few steps."""

    sampler: str | None = None
    """Sampler: dpm-solver++, ddim (of first order), sa-solver (adds noise on the way), euler (rectified flow) or lcm (networks
    distilled by consistency); default: dpm-solver++, or as a network of few steps was trained for."""
    num_inference_steps: int | None = None
    """Number of steps, each one or, with guidance, two passes through the network; default: 20, or those that a network of few
    steps was trained for."""
    guidance_scale: float | None = None
    """Weight of the prompt against the negative prompt; 1 or less: no guidance, at half the work. Default: 4.5, or none for a
    network of few steps, which guides itself."""
    eta: float = 0.0
    """Noise of ddim: 0 for none, 1 for as much as in the forward process."""
    timesteps: tuple[int, ...] | None = None
    """Timesteps instead of the scheduler's own, falling, in 0..999; diffusion with dpm-solver++ only."""
    sigmas: tuple[float, ...] | None = None
    """Noise levels in place of the scheduler's own, falling, above 0, 1 at most, before the objective's shift; rectified flow
    only. As with timesteps, num_inference_steps is then not read."""
    shift: float | None = None
    """Shift of rectified flow's times towards noise; none: that of pipeline.json, which the network was trained with last."""
    guidance_by: GuidanceBy = "prompt"
    """Guidance away from the negative prompt (prompt), or from a pass of the same prompt whose middle blocks see only some of
    the tokens (routing), for networks that TREAD trained."""

    def __post_init__(self) -> None:
        steps, scale = self.num_inference_steps, self.guidance_scale
        problems = [
            f"{name} must be {bound}"
            for name, bound, holds in [
                ("sampler", f"one of {', '.join(SAMPLERS)}", self.sampler in (None, *SAMPLERS)),
                ("num_inference_steps", "1 to 1000", steps is None or 1 <= steps <= 1000),
                ("guidance_scale", "0 or more", scale is None or scale >= 0),
                ("eta", "0, or up to 1 with ddim", self.eta == 0 or (self.sampler == "ddim" and 0 < self.eta <= 1)),
                ("timesteps", "given with dpm-solver++ only", self.timesteps is None or self.sampler in (None, "dpm-solver++")),
                (
                    "timesteps",
                    "falling, in 0..999",
                    self.timesteps is None or _are_falling(self.timesteps, least=0, largest=999),
                ),
                ("guidance_by", f"one of {', '.join(get_args(GuidanceBy))}", self.guidance_by in get_args(GuidanceBy)),
                ("shift", "above 0", self.shift is None or self.shift > 0),
                (
                    "sigmas",
                    "falling, above 0, 1 at most",
                    self.sigmas is None or _are_falling(self.sigmas, least=1e-9, largest=1),
                ),
            ]
            if not holds
        ]
        if problems:
            raise ValueError("; ".join(problems))

    def record(self) -> dict[str, Any]:
        """All settings as JSON holds them; without `shift` and `guidance_by` where they are not set, as earlier versions."""
        values = asdict(self)
        return {key: value for key, value in values.items() if key not in _ADDED or value != getattr(SamplingConfig, key)}

    def resolved(self, few_steps: FewSteps | None = None) -> "SamplingConfig":
        """The same with what was left open filled in: as a network was distilled to few steps, else as the paper samples."""
        own: dict[str, Any] = {"sampler": "dpm-solver++", "num_inference_steps": 20, "guidance_scale": 4.5}
        if few_steps is not None and self.timesteps is None:
            own = {"sampler": few_steps.sampler, "num_inference_steps": few_steps.num_inference_steps, "guidance_scale": 1.0}
        return replace(self, **{name: value for name, value in own.items() if getattr(self, name) is None})

    @property
    def num_steps(self) -> int:
        """Steps that will be taken, whichever setting gives them."""
        given = self.sigmas if self.timesteps is None else self.timesteps
        return (self.num_inference_steps or 20) if given is None else len(given)

    @property
    def scale(self) -> float:
        """Guidance scale; the paper's where it was left open, as number of steps."""
        return 4.5 if self.guidance_scale is None else self.guidance_scale

    @property
    def guided(self) -> bool:
        """Whether the negative prompt is read at all."""
        return self.scale > 1 and self.guidance_by == "prompt"

    @property
    def routed(self) -> bool:
        """Whether guidance leads away from a pass whose middle blocks see a part of the tokens."""
        return self.scale > 1 and self.guidance_by == "routing"


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Conditioning of a batch of images. `negative_captions` are read with guidance only."""

    captions: "Captions"
    routed: "RoutedBlocks | None" = None
    """Blocks that see a part of the tokens in the pass that guidance by routing leads away from."""
    negative_captions: "Captions | None" = None
    sizes: "torch.Tensor | None" = None
    """(B, 2) height and width in pixels, for a network with micro-conditioning."""
    aspect_ratios: "torch.Tensor | None" = None
    """(B, 1) height / width, for a network with micro-conditioning."""
    guidance_scales: "torch.Tensor | None" = None
    """(B, 1, 1, 1) weight of the prompt of each image, above 1, in place of the configuration's."""
    control: "torch.Tensor | None" = None
    """(B, C, h, w) latents of the control images, for a network with a control; the negative pass reads them too."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentEdit:
    """Image that sampling starts from, and what of it is kept."""

    latents: "torch.Tensor"
    """(1, C, h, w) latents of the image, float32."""
    strength: float
    """Share of the steps that are taken: 0 leaves the image as it is, 1 begins with pure noise."""
    mask: "torch.Tensor | None" = None
    """(1, 1, h, w) 1 where the image is drawn anew, 0 where it is kept; none: drawn anew everywhere."""


def image_generators(seeds: Sequence[int]) -> "list[torch.Generator]":
    """A source of noise for each image; first its starting noise is drawn from it, then what ddim with eta needs."""
    import torch

    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def draw_noise(generators: "Sequence[torch.Generator]", shape: tuple[int, int, int]) -> "torch.Tensor":
    """Starting noise (B, C, h, w) in float32 on the CPU, each image's from its own generator."""
    import torch

    return torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators])  # (B, C, h, w)


def sample_latents(
    transformer: "DiT",
    objective: "Objective",
    conditioning: Conditioning,
    *,
    noise: "torch.Tensor",
    config: SamplingConfig,
    generators: "Sequence[torch.Generator] | None" = None,
    edit: LatentEdit | None = None,
    on_step: OnStep | None = None,
) -> "torch.Tensor":
    """Latents (B, C, h, w) in float32 from noise (B, C, h, w), on the network's device.

    `generators` are read by samplers that add noise and by guidance by routing only. Raises UserError for a sampler that the
    objective does not know.
    """
    config = config.resolved()
    device = next(transformer.parameters()).device
    predict = make_predictor(transformer, conditioning, config, generators=generators or ())
    return denoise(predict, objective, noise=noise.to(device), config=config, generators=generators, edit=edit, on_step=on_step)


def denoise(
    predict: Predictor,
    objective: "Objective",
    *,
    noise: "torch.Tensor",
    config: SamplingConfig,
    generators: "Sequence[torch.Generator] | None" = None,
    edit: LatentEdit | None = None,
    on_step: OnStep | None = None,
) -> "torch.Tensor":
    """Latents (B, C, h, w) in float32 from noise (B, C, h, w), on its device, for any network.

    `predict` makes a guided prediction (B, C, h, w) in float32 of latents and a timestep ().
    Raises UserError for a sampler that the objective does not know.
    """
    import torch

    denoising = Denoising(objective, config, noise=noise, generators=generators or (), edit=edit)
    with torch.no_grad():
        while not denoising.is_done:
            step, timestep = denoising.num_taken, denoising.timestep
            denoising.advance(predict(denoising.latents, timestep))
            if on_step is not None:
                on_step(step, float(timestep), denoising.latents)
    return denoising.latents


class Denoising:
    """Latents (B, C, h, w) on their way from noise, and the scheduler that takes them one step after the other.

    Source of `edit`: the image-to-image and inpainting pipelines of diffusers. An image is made as noisy as the first step that
    is taken expects; what is kept of it is put back after each step, as noisy as the next one expects.
    """

    def __init__(
        self,
        objective: "Objective",
        config: SamplingConfig,
        *,
        noise: "torch.Tensor",
        generators: "Sequence[torch.Generator]" = (),
        edit: LatentEdit | None = None,
    ) -> None:
        """`generators` are read by samplers that add noise. Raises UserError for one that the objective does not know."""
        import torch

        config = config.resolved()
        self._scheduler = make_scheduler(objective, config, device=noise.device)
        self._options: dict[str, Any] = {"eta": config.eta} if config.eta else {}
        if config.eta or config.sampler in _STOCHASTIC:
            assert generators, f"{config.sampler} draws noise from each image's generator"
            self._options["generator"] = list(generators)
        self._noise = noise.to(torch.float32)
        self._edit = edit
        num = len(self._scheduler.timesteps)
        self._first = self._index = 0 if edit is None else num - int(num * edit.strength)
        if hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(self._index)
        self.latents = self._noise if edit is None or edit.strength == 1 else self._noised_image()
        """(B, C, h, w) float32"""

    @property
    def num_taken(self) -> int:
        """Number of steps that were taken."""
        return self._index - self._first

    @property
    def is_done(self) -> bool:
        """Whether no step is left."""
        return self._index == len(self._scheduler.timesteps)

    @property
    def timestep(self) -> "torch.Tensor":
        """() that of the next step, in 0..1000."""
        found: torch.Tensor = self._scheduler.timesteps[self._index]
        return found

    def advance(self, prediction: "torch.Tensor") -> None:
        """Takes a step by the guided prediction (B, C, h, w) of the latents at the timestep."""
        self.latents = self._scheduler.step(prediction, self.timestep, self.latents, **self._options, return_dict=False)[0]
        self._index += 1
        if self._edit is not None and self._edit.mask is not None:
            mask = self._edit.mask.to(self.latents)
            self.latents = mask * self.latents + (1 - mask) * self._noised_image()

    def _noised_image(self) -> "torch.Tensor":
        """(B, C, h, w) the image, as noisy as the next step expects."""
        assert self._edit is not None
        latents = self._edit.latents.to(self._noise).expand_as(self._noise)
        if self.is_done:
            return latents
        timestep = self._scheduler.timesteps[self._index : self._index + 1]
        if hasattr(self._scheduler, "scale_noise"):  # that of the samplers of rectified flow alone
            noised: torch.Tensor = self._scheduler.scale_noise(latents, timestep, self._noise)
        else:
            noised = self._scheduler.add_noise(latents, self._noise, timestep)
        return noised


def make_scheduler(objective: "Objective", config: SamplingConfig, *, device: "torch.device | str" = "cpu") -> Any:
    """A scheduler of diffusers for an objective, with its timesteps set. Raises UserError for what the two cannot do."""
    import diffusers

    from model.diffusion import RectifiedFlow, set_steps

    config = config.resolved()
    if config.shift is not None:
        if not isinstance(objective, RectifiedFlow):
            raise UserError(
                "a shift of times is for the objective rectified_flow, found diffusion: leave it out", setting="shift"
            )
        objective = replace(objective, shift=config.shift)
    try:
        settings = objective.scheduler_config(config.sampler or "")
    except ValueError as error:
        raise UserError(str(error)) from error
    is_flow = isinstance(objective, RectifiedFlow)
    if config.eta and is_flow:
        raise UserError("eta: expected 0 for the objective rectified_flow: take the sampler sa-solver for noise on the way")
    if config.timesteps is not None and settings.get("use_flow_sigmas"):
        raise UserError("timesteps: expected none for the objective rectified_flow; give sigmas")
    if config.sigmas is not None and not is_flow:
        raise UserError("sigmas: expected none for the objective diffusion; give timesteps")
    scheduler = getattr(diffusers, settings["_class_name"]).from_config(settings)
    set_steps(scheduler, config.num_steps, sigmas=config.sigmas, timesteps=config.timesteps, device=device)
    return scheduler


def _are_falling(values: Sequence[float], *, least: float, largest: float) -> bool:
    """Whether there are some, none of them twice, from `largest` at most down to `least` at least."""
    return len(values) > 0 and list(values) == sorted(set(values), reverse=True) and least <= values[-1] <= values[0] <= largest


def make_predictor(
    transformer: "DiT", conditioning: Conditioning, config: SamplingConfig, *, generators: "Sequence[torch.Generator]" = ()
) -> Predictor:
    """The guided prediction of a batch of images. `generators` are read with guidance by routing only."""
    import torch

    with torch.no_grad():
        if config.routed:
            return _routed_predictor(transformer, conditioning, config, generators)
        return _predictor(transformer, conditioning, config)


def _predictor(transformer: "DiT", conditioning: Conditioning, config: SamplingConfig) -> Predictor:
    import torch

    from model.dit import Captions

    captions, control = conditioning.captions, conditioning.control
    sizes, ratios = conditioning.sizes, conditioning.aspect_ratios
    scale = config.scale if conditioning.guidance_scales is None else conditioning.guidance_scales
    if config.guided:
        assert conditioning.negative_captions is not None, "guidance needs a negative caption for each image"
        captions = Captions.cat([conditioning.negative_captions, captions])  # 2 B
        control, sizes, ratios = (one if one is None else torch.cat([one] * 2) for one in (control, sizes, ratios))  # (2 B, …)
    prepared = transformer.prepare(captions.to(next(transformer.parameters()).device))  # keys and values, once for all steps

    def predict(latents: "torch.Tensor", timestep: "torch.Tensor") -> "torch.Tensor":
        times, num = timestep.to(latents.device, torch.float32).expand(len(latents)), 2 if config.guided else 1
        inputs, times = torch.cat([latents] * num), torch.cat([times] * num)  # (B or 2 B, C, h, w), (B or 2 B,)
        output: torch.Tensor = transformer(inputs, times, captions=prepared, sizes=sizes, aspect_ratios=ratios, control=control)
        prediction = output[:, : latents.shape[1]].float()  # without the variance: (2 B, C, h, w)
        if not config.guided:
            return prediction
        negative, positive = prediction.chunk(2)  # 2 x (B, C, h, w)
        return negative + scale * (positive - negative)

    return predict


def _routed_predictor(
    transformer: "DiT", conditioning: Conditioning, config: SamplingConfig, generators: "Sequence[torch.Generator]"
) -> Predictor:
    """Like `_predictor`, but guided away from a pass whose middle blocks see a part of the tokens, drawn again at each step."""
    import torch

    from model.layers.token_routing import TokenRoute

    device, patch_size = next(transformer.parameters()).device, transformer.config.patch_size
    prepared = transformer.prepare(conditioning.captions.to(device))  # keys and values, once for all steps
    blocks = conditioning.routed
    scale = config.scale if conditioning.guidance_scales is None else conditioning.guidance_scales
    assert blocks is not None, "guidance by routing needs a network that was trained with it"
    assert generators, "guidance by routing draws tokens from each image's generator"

    def predict(latents: "torch.Tensor", timestep: "torch.Tensor") -> "torch.Tensor":
        num = latents.shape[2] * latents.shape[3] // patch_size**2
        ranks = torch.stack([torch.rand(num, generator=generator) for generator in generators])  # (B, N)
        timesteps = timestep.to(latents.device, torch.float32).expand(len(latents))  # (B,)

        def run(route: TokenRoute | None) -> "torch.Tensor":
            output: torch.Tensor = transformer(
                latents,
                timesteps,
                captions=prepared,
                sizes=conditioning.sizes,
                aspect_ratios=conditioning.aspect_ratios,
                route=route,
            )
            return output[:, : latents.shape[1]].float()  # without the variance: (B, C, h, w)

        weak, full = run(TokenRoute.by_rank(ranks.to(device), blocks)), run(None)
        return weak + scale * (full - weak)

    return predict
