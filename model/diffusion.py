"""Objectives behind one interface, diffusion and rectified flow: noisy latents, timesteps, loss and scheduler settings.

Diffusion is the paper's: 1000 steps, linear betas, epsilon prediction, a learned variance. RectifiedFlow is a straight line
from the latents to noise and its velocity, with logit-normal timesteps. Timesteps are 0..1000 for both.

Source: DDPM (Ho et al. 2020), improved DDPM (Nichol and Dhariwal 2021, section 3.1), DiT's settings; Stable Diffusion 3 (Esser
et al. 2024, section 3.1) for logit-normal timesteps and their shift.
Shapes: B samples, C latent channels, H x W latent pixels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

ModelFn = Callable[[Tensor, Tensor], Tensor]
"""The network with its conditions bound: noisy latents (B, C, H, W) and timesteps (B,) to a prediction (B, C or 2 C, H, W)."""

_BIN = 1 / 255
"""Half the width of a bin in which the first step's likelihood is counted: DiT keeps that of 8-bit pixels for latents too."""
_GOLDEN = (math.sqrt(5) - 1) / 2
_DPM_SOLVER = {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++"}
CONSISTENCY_STEPS = 50
"""Steps of the teacher between noise and image, of which consistency distillation takes one. Source: LCM, section 4.3."""


@dataclass(frozen=True, eq=False)
class Losses:
    """Losses per sample, float32 (B,)."""

    total: Tensor
    """Total loss, of which training takes the mean."""
    parts: Mapping[str, Tensor]
    """Named summands of the total."""


class Objective(Protocol):
    """Objective of a training: noise, loss and the scheduler that samples it."""

    def timesteps_at(self, quantiles: Tensor) -> Tensor:
        """The timesteps in 0..1000 (B,) at these quantiles (B,) in 0..1 of the distribution that training draws from."""

    def sample_timesteps(self, num: int, *, generator: torch.Generator) -> Tensor:
        """Random timesteps (num,) on the generator's device."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents (B, C, H, W), float32."""

    def loss(
        self, model_fn: ModelFn, latents: Tensor, noise: Tensor, timesteps: Tensor, *, mask: Tensor | None = None
    ) -> Losses:
        """The loss of a network on latents (B, C, H, W) made noisy at timesteps (B,).

        mask (B, 1, H, W): 1 at the latent pixels that count, 0 elsewhere; None: all count.
        """

    def levels(self, num: int) -> Tensor:
        """Timesteps (num + 1,) of even steps from image to noise, rising, float32."""

    def clean(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """The latents (B, C, H, W) that a prediction (B, C, H, W) finds in noisy ones at timesteps (B,), float32."""

    def move(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor, to: Tensor) -> Tensor:
        """A first-order step (DDIM's, Euler's) of noisy latents from timesteps (B,) to others (B,), float32."""

    def scheduler_config(self, sampler: str) -> dict[str, Any]:
        """Settings of diffusers' scheduler for a sampler, with its class as `_class_name`.

        Raises ValueError for one that cannot sample this objective.
        """


@dataclass(frozen=True)
class Diffusion:
    """Epsilon prediction with a learned variance, as the paper trains it."""

    num_train_timesteps: int = 1000
    """Steps of the forward process."""
    beta_start: float = 1e-4
    """Variance that the first step adds."""
    beta_end: float = 0.02
    """Variance that the last step adds; linear between."""
    learned_variance: bool = True
    """Whether the prediction's second half sets the variance between the smallest and the largest that make sense."""

    def __post_init__(self) -> None:
        if not (self.num_train_timesteps >= 2 and 0 < self.beta_start <= self.beta_end < 1):
            raise ValueError(f"expected 2 timesteps or more and 0 < beta_start <= beta_end < 1, found {self}")

    def timesteps_at(self, quantiles: Tensor) -> Tensor:
        """Uniform over the whole steps 0..999, as floats."""
        return (quantiles * self.num_train_timesteps).floor().clamp(max=self.num_train_timesteps - 1)

    def sample_timesteps(self, num: int, *, generator: torch.Generator) -> Tensor:
        """Random timesteps (num,) on the generator's device."""
        return self.timesteps_at(torch.rand(num, generator=generator, device=generator.device))

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """sqrt(alpha_bar) latents + sqrt(1 - alpha_bar) noise."""
        at = self._at(timesteps)
        return at.signal * latents.float() + at.noise * noise.float()  # (B, C, H, W)

    def loss(
        self, model_fn: ModelFn, latents: Tensor, noise: Tensor, timesteps: Tensor, *, mask: Tensor | None = None
    ) -> Losses:
        """Squared error of the noise, plus the variational bound in bits per dimension, which trains the variance alone.

        Raises ValueError if the network has not the channels that the objective needs.
        """
        noisy = self.add_noise(latents, noise, timesteps)  # (B, C, H, W)
        prediction = model_fn(noisy, timesteps).float()
        _check_channels(prediction, latents, factor=2 if self.learned_variance else 1)
        epsilon = prediction[:, : latents.shape[1]]  # (B, C, H, W)
        error = _mean((epsilon - noise.float()).square(), mask)  # (B,)
        if not self.learned_variance:
            return Losses(total=error, parts={"mse": error})
        variance = prediction[:, latents.shape[1] :]  # (B, C, H, W)
        bound = self.bound(
            epsilon.detach(), variance, latents=latents.float(), noisy=noisy, timesteps=timesteps, mask=mask
        )  # (B,)
        return Losses(total=error + bound, parts={"mse": error, "bound": bound})

    def bound(
        self,
        epsilon: Tensor,
        variance: Tensor,
        *,
        latents: Tensor,
        noisy: Tensor,
        timesteps: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """One term of the variational bound (B,), in bits per dimension.

        KL of the true posterior q(x_{t-1} | x_t, x_0) from the network's step; at t = 0 the negative log-likelihood of the
        latents in bins of 2/255. variance (B, C, H, W) is -1 at the smallest log-variance and 1 at the largest.
        """
        at = self._at(timesteps)
        predicted = (noisy - at.noise * epsilon) / at.signal  # (B, C, H, W)
        true_mean = at.from_latents * latents + at.from_noisy * noisy
        mean = at.from_latents * predicted + at.from_noisy * noisy
        share = (variance + 1) / 2
        log_variance = share * at.log_largest + (1 - share) * at.log_smallest  # (B, C, H, W)
        divergence = 0.5 * (
            log_variance
            - at.log_smallest
            + (at.log_smallest - log_variance).exp()
            + (true_mean - mean).square() * (-log_variance).exp()
            - 1
        )
        likelihood = _binned_log_likelihood(latents, mean=mean, log_std=0.5 * log_variance)
        nats = torch.where((timesteps == 0).view(-1, 1, 1, 1), -likelihood, divergence)  # (B, C, H, W)
        return _mean(nats, mask) / math.log(2)

    def levels(self, num: int) -> Tensor:
        """0, and the last timestep of each of `num` equal parts, whole numbers."""
        return (torch.arange(num + 1) * self.num_train_timesteps // num - 1).clamp(min=0).float()

    def clean(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """(noisy - sqrt(1 - alpha_bar) noise) / sqrt(alpha_bar), the noise being the prediction."""
        at = self._at(timesteps)
        return (noisy.float() - at.noise * prediction.float()) / at.signal  # (B, C, H, W)

    def move(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor, to: Tensor) -> Tensor:
        """DDIM's step without noise: the latents and the noise that the prediction finds, mixed as at the timesteps `to`."""
        at = self._at(to)
        return at.signal * self.clean(noisy, prediction, timesteps) + at.noise * prediction.float()  # (B, C, H, W)

    def scheduler_config(self, sampler: str) -> dict[str, Any]:
        """dpm-solver++, ddim, sa-solver or lcm; the settings of the published PixArt pipelines."""
        schedule = {
            "num_train_timesteps": self.num_train_timesteps,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "beta_schedule": "linear",
            "prediction_type": "epsilon",
        }
        samplers: dict[str, dict[str, Any]] = {
            "dpm-solver++": {**_DPM_SOLVER, "solver_order": 2, "timestep_spacing": "linspace"},
            "ddim": {"_class_name": "DDIMScheduler", "clip_sample": False, "timestep_spacing": "trailing"},
            "sa-solver": {"_class_name": "SASolverScheduler", "timestep_spacing": "linspace"},
            "lcm": {"_class_name": "LCMScheduler", "original_inference_steps": CONSISTENCY_STEPS},
        }
        return schedule | _chosen(samplers, sampler, "diffusion")

    def _at(self, timesteps: Tensor) -> "_Schedule":
        """The schedule's values at whole timesteps, each (B, 1, 1, 1)."""
        table = _schedule(self, timesteps.device)
        return _Schedule(*(values[timesteps.long()].view(-1, 1, 1, 1) for values in table))


@dataclass(frozen=True)
class RectifiedFlow:
    """Velocity prediction on the straight line (1 - t) latents + t noise; t is the timestep / 1000."""

    mean: float = 0.0
    """Mean of logit(t); above 0: more noise."""
    std: float = 1.0
    """Standard deviation of logit(t)."""
    shift: float = 1.0
    """Shift of the times of training and sampling towards noise, for more latent pixels: t becomes s t / (1 + (s - 1) t)."""
    num_train_timesteps: int = 1000
    """Timestep of pure noise."""

    def __post_init__(self) -> None:
        if not (self.std > 0 and self.shift > 0 and self.num_train_timesteps >= 1):
            raise ValueError(f"expected std, shift and num_train_timesteps above 0, found {self}")

    def timesteps_at(self, quantiles: Tensor) -> Tensor:
        """Logit-normal, shifted."""
        return self._shifted(torch.sigmoid(self.mean + self.std * torch.special.ndtri(quantiles)))

    def sample_timesteps(self, num: int, *, generator: torch.Generator) -> Tensor:
        """Random timesteps (num,) on the generator's device."""
        return self.timesteps_at(torch.rand(num, generator=generator, device=generator.device))

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """(1 - t) latents + t noise."""
        times = (timesteps.float() / self.num_train_timesteps).view(-1, 1, 1, 1)
        return torch.lerp(latents.float(), noise.float(), times)  # (B, C, H, W)

    def loss(
        self, model_fn: ModelFn, latents: Tensor, noise: Tensor, timesteps: Tensor, *, mask: Tensor | None = None
    ) -> Losses:
        """Squared error of the velocity, noise - latents. Raises ValueError for a network with a learned variance."""
        prediction = model_fn(self.add_noise(latents, noise, timesteps), timesteps).float()
        _check_channels(prediction, latents, factor=1)
        error = _mean((prediction - (noise.float() - latents.float())).square(), mask)  # (B,)
        return Losses(total=error, parts={"mse": error})

    def levels(self, num: int) -> Tensor:
        """Even times, shifted."""
        return self._shifted(torch.arange(num + 1) / num)

    def clean(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """noisy - t velocity."""
        return self.move(noisy, prediction, timesteps, torch.zeros_like(timesteps))

    def move(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor, to: Tensor) -> Tensor:
        """Euler's step along the velocity."""
        length = ((to.float() - timesteps.float()) / self.num_train_timesteps).view(-1, 1, 1, 1)
        return noisy.float() + length * prediction.float()  # (B, C, H, W)

    def scheduler_config(self, sampler: str) -> dict[str, Any]:
        """dpm-solver++ (also what an exported pipeline has), ddim (of first order, Euler's steps), euler, sa-solver or lcm."""
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": self.shift}
        samplers: dict[str, dict[str, Any]] = {
            "dpm-solver++": {**_DPM_SOLVER, "solver_order": 2, **flow},
            "ddim": {**_DPM_SOLVER, "solver_order": 1, **flow},
            "euler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": self.shift},
            "sa-solver": {"_class_name": "SASolverScheduler", **flow},
            # diffusers' PixArt pipelines cannot call FlowMatchLCMScheduler. This has as much noise, nearly all of it new.
            "lcm": {**_DPM_SOLVER, "algorithm_type": "sde-dpmsolver++", "solver_order": 1, **flow},
        }
        return {"num_train_timesteps": self.num_train_timesteps, **_chosen(samplers, sampler, "rectified_flow")}

    def _shifted(self, times: Tensor) -> Tensor:
        """The timesteps of times in 0..1 before the shift."""
        return self.num_train_timesteps * self.shift * times / (1 + (self.shift - 1) * times)


OBJECTIVES: dict[str, type[Diffusion] | type[RectifiedFlow]] = {"diffusion": Diffusion, "rectified_flow": RectifiedFlow}


def make_objective(name: str, settings: Mapping[str, Any] | None = None) -> Objective:
    """An objective by its name in pipeline.json. Raises ValueError for an unknown name and for settings that it cannot have."""
    if name not in OBJECTIVES:
        raise ValueError(f"objective: expected {' or '.join(OBJECTIVES)}, found {name!r}")
    try:
        return OBJECTIVES[name](**(settings or {}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"objective {name}: {error}") from error


def set_steps(
    scheduler: Any,
    num: int,
    *,
    sigmas: Sequence[float] | None,
    timesteps: Sequence[int] | None,
    device: torch.device | str,
) -> None:
    """Sets the steps of a scheduler of diffusers: `num` of its own, or those at timesteps, or at noise levels before the shift.

    Solvers in logarithms of the noise levels begin at 0.999, as by themselves.
    """
    is_flow_solver = bool(scheduler.config.get("use_flow_sigmas"))
    if timesteps is not None:
        scheduler.set_timesteps(timesteps=list(timesteps), device=device)
    elif sigmas is not None and not is_flow_solver:
        scheduler.set_timesteps(sigmas=list(sigmas), device=device)
    else:
        scheduler.set_timesteps(num, device=device)
    if not is_flow_solver:
        return
    shift, num_train = scheduler.config["flow_shift"], scheduler.config["num_train_timesteps"]
    if sigmas is not None:
        levels = torch.tensor(sigmas).clamp(max=1 - 1 / num_train)
        levels = shift * levels / (1 + (shift - 1) * levels)
        scheduler.sigmas = torch.cat([levels, scheduler.sigmas[-1:]])
        scheduler.timesteps = (num_train * levels).to(device)
    if scheduler.sigmas[-1] > 0:  # SA-Solver's is that of its last step, which would remove no noise
        scheduler.sigmas[-1] = 1 / num_train


def validation_noise(objective: Objective, latents: Tensor, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Noise (B, C, H, W) and timesteps (B,) that depend on the samples' indices in the validation set alone.

    The timesteps of successive indices fall into the largest gap of those before, so that few samples cover all of them.
    """
    draws = [torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(index)) for index in indices]
    quantiles = torch.tensor([(0.5 + index * _GOLDEN) % 1 for index in indices], dtype=torch.float64)
    return torch.stack(draws).to(latents.device), objective.timesteps_at(quantiles).float().to(latents.device)


@torch.no_grad()
def validation_loss(objective: Objective, model_fn: ModelFn, latents: Tensor, indices: Sequence[int]) -> Losses:
    """The loss at noise and timesteps that are the same at every call: comparable between steps, runs and batch sizes.

    indices: each sample's index in the validation set.
    """
    noise, timesteps = validation_noise(objective, latents, indices)
    return objective.loss(model_fn, latents, noise, timesteps)


class _Schedule(NamedTuple):
    """Per timestep; alpha_bar is the share of the latents' variance that is left."""

    signal: Tensor
    """sqrt(alpha_bar)"""
    noise: Tensor
    """sqrt(1 - alpha_bar)"""
    from_latents: Tensor
    """Weight of the latents in the posterior's mean."""
    from_noisy: Tensor
    """Weight of the noisy latents in it."""
    log_smallest: Tensor
    """Log-variance of the posterior; at t = 0, where it is -inf, that of t = 1."""
    log_largest: Tensor
    """log beta"""


@lru_cache(maxsize=8)
def _schedule(diffusion: Diffusion, device: torch.device) -> _Schedule:
    """The tables (num_train_timesteps,), computed in float64."""
    steps = diffusion.num_train_timesteps
    betas = torch.linspace(diffusion.beta_start, diffusion.beta_end, steps, dtype=torch.float64)
    left = torch.cumprod(1 - betas, dim=0)
    before = torch.cat([left.new_ones(1), left[:-1]])
    posterior = betas * (1 - before) / (1 - left)
    tables = _Schedule(
        signal=left.sqrt(),
        noise=(1 - left).sqrt(),
        from_latents=betas * before.sqrt() / (1 - left),
        from_noisy=(1 - before) * (1 - betas).sqrt() / (1 - left),
        log_smallest=torch.cat([posterior[1:2], posterior[1:]]).log(),
        log_largest=betas.log(),
    )
    with torch.inference_mode(mode=False):  # so that training may use tables that an evaluation made
        return _Schedule(*(table.float().to(device) for table in tables))


def _binned_log_likelihood(values: Tensor, *, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-probability of each value's bin under a Gaussian; the outermost bins reach to infinity."""
    centred, scale = values - mean, (-log_std).exp()
    below = torch.where(values < -0.999, 0.0, torch.special.ndtr((centred - _BIN) * scale))
    above = torch.where(values > 0.999, 1.0, torch.special.ndtr((centred + _BIN) * scale))
    return (above - below).clamp(min=1e-12).log()


def _chosen(samplers: Mapping[str, dict[str, Any]], sampler: str, objective: str) -> dict[str, Any]:
    """The settings of a sampler. Raises ValueError, with those that there are, for one that is not among them."""
    if sampler not in samplers:
        *others, last = samplers
        raise ValueError(f"sampler: expected {', '.join(others)} or {last} for the objective {objective}, found {sampler}")
    return samplers[sampler]


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of each sample (B,) over all of its values (B, C, H, W), or over those where the mask (B, 1, H, W) is 1."""
    if mask is None:
        return values.flatten(1).mean(1)
    return (values * mask).flatten(1).sum(1) / (mask.flatten(1).sum(1) * values.shape[1])


def _check_channels(prediction: Tensor, latents: Tensor, *, factor: int) -> None:
    expected = (len(latents), factor * latents.shape[1], *latents.shape[2:])
    if tuple(prediction.shape) != expected:
        raise ValueError(
            f"prediction: expected {expected} for latents {tuple(latents.shape)}, found {tuple(prediction.shape)}; "
            "does learned_variance of the network fit the objective?"
        )
