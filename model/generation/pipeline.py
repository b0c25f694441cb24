"""Pipeline from prompts to images: text encoder, network and VAE, on request each in memory only while it works.

    prompts ─► T5 ─► captions ─► sampling (seeds, steps, guidance) ─► latents ─► VAE ─► images

Every image has a prompt and a seed, and depends, beyond rounding, on nothing else: not on its batch or its position in a list.
Equal to diffusers' PixArtAlphaPipeline within rounding, for the same weights and seeds.
Shapes: B images, C latent channels, h x w the sides of the latents, H x W those of the images.
"""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.errors import NotFiniteOutput, UserError
from foundry.hardware import Halving, keep_freed_memory
from foundry.reporting.progress import Bar
from model.control.settings import EDGES
from model.encoders.text_encoder import TextEncoder
from model.encoders.vae import VAE
from model.formats.checkpoint import PipelineConfig, find_checkpoint, read_pipeline_config, read_transformer_config
from model.generation.not_finite import NotFiniteImages, not_finite
from model.generation.pipeline_parts import Part, Parts, RuntimeConfig, checkpoint_parts
from model.generation.pixels import Output, check_is_edge_map, control_latents, edit_size, final_image, latent_edit
from model.generation.request import EncodedPrompts, GeneratedImage, GenerationRequest
from model.generation.resolution import ImageSize, image_size
from model.sampling import (
    Conditioning,
    LatentEdit,
    OnStep,
    draw_noise,
    image_generators,
    make_scheduler,
    sample_latents,
)

if TYPE_CHECKING:
    import torch

    from model.control.settings import ControlChoice
    from model.diffusion import Objective
    from model.dit import Captions, DiT
    from model.dit_config import DiTConfig
    from model.lora.settings import LoraChoice

STAGED_IMAGES = 1024
"""Images that pass a part, if staged, before the next is loaded; their latents wait in main memory, 64 MB at 1024 px."""


class Pipeline:
    """Prompts to images. See `open_pipeline` for checkpoints and `pipeline_in_memory` for parts that are loaded already."""

    def __init__(
        self,
        config: PipelineConfig,
        parts: Parts,
        *,
        transformer_config: "DiTConfig",
        runtime: RuntimeConfig,
    ) -> None:
        self.config = replace(config, few_steps=parts.few_steps or config.few_steps)
        self.transformer_config = transformer_config
        self.downsampling = parts.downsampling
        self.runtime = runtime
        self.objective = _objective(config)
        self.parts = parts
        self._batches = Halving()

    def __call__(
        self, request: GenerationRequest, *, output: Output = "pil", on_step: OnStep | None = None, progress: bool = False
    ) -> list[GeneratedImage]:
        """All images of a request, those of the first prompt first."""
        return list(self.stream(request, output=output, on_step=on_step, progress=progress))

    def stream(
        self,
        request: GenerationRequest,
        *,
        output: Output = "pil",
        images: Sequence[int] | None = None,
        on_step: OnStep | None = None,
        progress: bool = False,
    ) -> Iterator[GeneratedImage]:
        """The images of a request as they get done; with `images`, those at these indices only.

        Raises UserError for sizes and captions that do not fit the network; and NotFiniteOutput, once all others are done, for
        images that are NaN or infinite.
        """
        request = replace(request, sampling=request.sampling.resolved(self.config.few_steps))
        size = self.check(request)
        wanted = list(range(request.num_images) if images is None else images)
        together = STAGED_IMAGES if self.runtime.staged else self.runtime.batch_size
        failed = NotFiniteImages(request, num_images=len(wanted))
        total = len(wanted) * request.num_steps
        edit, control = self.edit(request), self._control(request, size)
        with Bar("drawing", total=total, unit="step", soon_s=1e-3, shown=progress) as bar:  # not shown before the first step

            def after_step(step: int, timestep: float, latents: "torch.Tensor") -> None:
                bar.advance(len(latents))
                if on_step is not None:
                    on_step(step, timestep, latents)

            for start in range(0, len(wanted), together):
                chosen = wanted[start : start + together]
                encoded = self._encode(request, chosen)
                self._release()
                sound = failed.leave_out(chosen, encoded.finite(request, chosen), self._of_captions(request))
                latents = self._sample(request, sound, encoded, size=size, edit=edit, control=control, on_step=after_step)
                finite = latents.isfinite().flatten(1).all(dim=1)
                network = not_finite("the network's output", dtype=self.runtime.dtype, other="another checkpoint")
                sound = failed.leave_out(sound, finite.tolist(), network)
                self._release()
                yield from self._decode(request, sound, encoded, latents[finite], size=size, output=output, failed=failed)
                self._release()
                failed.check(num_seen=start + len(chosen))

    def encode(self, prompts: Sequence[str]) -> "Captions":
        """Features of prompts, for `GenerationRequest.captions` or to keep."""
        return self.parts.text_encoder.get().encode(prompts)

    def check(self, request: GenerationRequest) -> ImageSize:
        """Size of the images. Raises UserError for what does not fit the network, before anything is loaded."""
        size = self._size(request)
        self._check_guidance(request)
        self._check_control(request, size)
        make_scheduler(self.objective, request.sampling)
        return size

    def edit(self, request: GenerationRequest) -> LatentEdit | None:
        """The image to edit and its mask as latents; None where the request has none."""
        if request.image is None:
            return None
        found = latent_edit(request, self.parts.vae.get())
        self._release()
        return found

    def _control(self, request: GenerationRequest, size: ImageSize) -> "torch.Tensor | None":
        """Latents (1 or images, C, h, w) of the control image; None where the request has none."""
        if request.control_image is None:
            given = request.control_latents
            return None if given is None else given.to(self.runtime.device)
        found = control_latents(request, self.parts.vae.get(), size).to(self.runtime.device)
        self._release()
        return found

    def _check_control(self, request: GenerationRequest, size: ImageSize) -> None:
        """Raises UserError for a control without its image, an image without a control, and what the two cannot do."""
        condition = self.parts.control
        if (condition is not None) != request.has_control:
            raise UserError(
                "a control image is for a network with a control: name it"
                if request.has_control
                else "the network has a control, which follows a control image: give one, or leave the control out",
                setting="control" if request.has_control else "control_image",
            )
        if request.compute_edges and condition != EDGES:
            raise UserError(
                f"the control was trained on {condition or 'images that its files do not name'}, not on the edges that are "
                f"computed here ({EDGES}): give an image as in its training",
                setting="compute_edges",
            )
        if condition == EDGES and not request.compute_edges and request.control_image is not None:
            check_is_edge_map(request.control_image)
        if request.has_control and request.sampling.routed:
            raise UserError("guidance by routing is not there with a control: take guidance by prompt", setting="guidance_by")
        found, shape = request.control_latents, self.latent_shape(size)
        if found is not None and tuple(found.shape) not in ((1, *shape), (request.num_images, *shape)):
            raise UserError(f"control_latents: expected {(request.num_images, *shape)}, found {tuple(found.shape)}")

    def _size(self, request: GenerationRequest) -> ImageSize:
        """Size of the images. Raises UserError for sizes and noise that do not fit the network."""
        config = self.transformer_config
        multiple = self.downsampling * config.patch_size * (config.kv_compression.factor if config.kv_compression.layers else 1)
        if request.image is not None:
            size = edit_size(request, multiple=multiple)
        else:
            resolution, binning = self.config.resolution, request.resolution_binning
            size = image_size(request.height, request.width, resolution=resolution, binning=binning, multiple=multiple)
        expected = (request.num_images, *self.latent_shape(size))
        if request.noise is not None and tuple(request.noise.shape) != expected:
            raise UserError(
                f"noise: expected {expected} for {size.height} x {size.width} px, found {tuple(request.noise.shape)}"
            )
        return size

    def _check_guidance(self, request: GenerationRequest) -> None:
        """Raises UserError for guidance by routing where the network does not know it, and for captions without others."""
        if request.sampling.guided and request.captions is not None and request.negative_captions is None:
            raise UserError("negative_captions: expected with captions under guidance, since no prompt is encoded then")
        if request.sampling.routed and self.config.routed is None:
            raise UserError(
                "guidance by routing is for networks that TREAD trained, and this checkpoint's pipeline.json names no routed "
                "blocks: take guidance by prompt",
                setting="guidance_by",
            )

    def latent_shape(self, size: ImageSize) -> tuple[int, int, int]:
        """C, h and w of the latents of an image of this size."""
        return (self.transformer_config.in_channels, size.height // self.downsampling, size.width // self.downsampling)

    def _encode(self, request: GenerationRequest, images: Sequence[int]) -> EncodedPrompts:
        """Features of the prompts of images; the text encoder is not loaded where captions are given."""
        indices = sorted({request.caption_index(image) for image in images})
        guided = request.sampling.guided
        captions, negatives, cut = request.captions, request.negative_captions, [0] * len(indices)
        if request.prompts is not None:
            encoder = self.parts.text_encoder.get()
            prompts = [request.prompts[index] for index in indices]
            captions, cut = encoder.encode(prompts), encoder.count_cut_tokens(prompts)
            if guided and negatives is None:
                negatives = encoder.encode([request.negative_prompt])
        elif captions is not None:
            captions = captions.select(indices)
        if negatives is not None and len(negatives) > 1:
            negatives = negatives.select(indices)
        assert captions is not None, "a request has prompts or captions"
        for one in (captions, negatives):
            self._check_captions(one)
        positions = {index: position for position, index in enumerate(indices)}
        return EncodedPrompts(
            captions=captions.to("cpu"),
            negatives=negatives.to("cpu") if guided and negatives else None,
            cut=cut,
            positions=positions,
        )

    def _check_captions(self, captions: "Captions | None") -> None:
        if captions is None:
            return
        config, width, longest = self.transformer_config, captions.tokens.shape[1], int(captions.lengths.max())
        if width != config.caption_width or longest > config.max_caption_tokens:
            raise UserError(
                f"captions: expected at most {config.max_caption_tokens} tokens of width {config.caption_width}, "
                f"found {longest} of width {width}: another text encoder than in training?"
            )

    def _of_captions(self, request: GenerationRequest) -> str:
        """The reason where the features of a caption are not finite."""
        if request.prompts is None:
            return "the features of its caption are NaN or infinite: encode it again"
        dtype = self.runtime.text_encoder_dtype or self.runtime.dtype
        return not_finite("the text encoder's output", dtype=dtype, other="another text encoder")

    def _sample(
        self,
        request: GenerationRequest,
        images: Sequence[int],
        encoded: EncodedPrompts,
        *,
        size: ImageSize,
        edit: LatentEdit | None,
        control: "torch.Tensor | None",
        on_step: OnStep,
    ) -> "torch.Tensor":
        """Latents (images, C, h, w) in float32 on the CPU."""
        import torch

        transformer = self.parts.transformer.get() if images else None

        def sample(batch: Sequence[int]) -> "torch.Tensor":
            generators = image_generators([request.image_seed(image) for image in batch])
            # Given noise leaves the generators as they are: what ddim draws on the way comes from the seeds.
            noise = draw_noise(generators, self.latent_shape(size)) if request.noise is None else request.noise[list(batch)]
            assert transformer is not None, "there are images"
            latents = sample_latents(
                transformer,
                self.objective,
                replace(
                    self._conditioning(encoded, [request.caption_index(image) for image in batch], size=size),
                    control=None if control is None else control[list(batch) if len(control) > 1 else [0] * len(batch)],
                ),
                noise=noise,
                config=request.sampling,
                generators=generators,
                edit=edit,
                on_step=on_step,
            )
            return latents.cpu()

        found = self._batches.run(images, sample, size=self.runtime.batch_size)
        return torch.cat([torch.empty(0, *self.latent_shape(size)), *found])

    def _conditioning(self, encoded: EncodedPrompts, indices: Sequence[int], *, size: ImageSize) -> Conditioning:
        positions = [encoded.positions[index] for index in indices]
        negatives = encoded.negatives
        sizes, ratios = self.micro_conditions(size, len(positions))
        return Conditioning(
            captions=encoded.captions.select(positions),
            routed=self.config.routed,
            negative_captions=negatives.select(positions if len(negatives) > 1 else [0] * len(positions))
            if negatives
            else None,
            sizes=sizes,
            aspect_ratios=ratios,
        )

    def micro_conditions(self, size: ImageSize, count: int) -> "tuple[torch.Tensor, torch.Tensor] | tuple[None, None]":
        """Sizes (count, 2) and aspect ratios (count, 1) that the network is told; None for one that is told none."""
        import torch

        if not self.transformer_config.micro_conditioning:
            return None, None
        sizes = torch.tensor([[size.height, size.width]] * count, dtype=torch.float32, device=self.runtime.device)
        return sizes, sizes[:, :1] / sizes[:, 1:]

    def _decode(
        self,
        request: GenerationRequest,
        images: Sequence[int],
        encoded: EncodedPrompts,
        latents: "torch.Tensor",
        *,
        size: ImageSize,
        output: Output,
        failed: NotFiniteImages,
    ) -> Iterator[GeneratedImage]:
        """Images, decoded one by one: a batch would be no quicker at the sizes where time counts."""
        vae = None if output == "latents" or not images else self.parts.vae.get()
        for image, own in zip(images, latents, strict=True):
            caption = request.caption_index(image)
            try:
                pixels = None if vae is None else final_image(vae.decode(own[None]), request, size, output)
            except NotFiniteOutput as error:
                failed.leave_out([image], [False], str(error))
                continue
            yield GeneratedImage(
                index=image,
                prompt=None if request.prompts is None else request.prompts[caption],
                negative_prompt=request.negative_prompt if request.negative_captions is None else None,
                seed=None if request.noise is not None else request.image_seed(image),
                num_cut_tokens=encoded.cut[encoded.positions[caption]],
                image=pixels,
                latents=own,
            )

    def _release(self) -> None:
        """Gives the memory of a part that is not kept back to the device."""
        if self.runtime.staged:
            import torch

            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def open_pipeline(
    checkpoint: str | Path,
    *,
    runtime: RuntimeConfig | None = None,
    text_encoder: str | None = None,
    vae: str | None = None,
    lora: "Sequence[LoraChoice]" = (),
    control: "ControlChoice | None" = None,
) -> Pipeline:
    """The pipeline of a checkpoint, with the adapters `lora` added to its network and a control put into it.

    `text_encoder` and `vae` say where else they are; they must be the same ones. Nothing is loaded yet but
    adapters, and all is looked for. Raises UserError for what is missing.
    """
    root = find_checkpoint(checkpoint)
    runtime = (runtime or RuntimeConfig()).resolved()
    keep_freed_memory()
    transformer_config = read_transformer_config(root)
    if transformer_config.conditioning != "text":
        raise UserError(f"{root} draws classes, not prompts: it is the class-conditional network of the pixel stage")
    parts = checkpoint_parts(root, runtime, text_encoder=text_encoder, vae=vae, lora=lora, control=control)
    return Pipeline(read_pipeline_config(root), parts, transformer_config=transformer_config, runtime=runtime)


def pipeline_in_memory(
    config: PipelineConfig, *, transformer: "DiT", text_encoder: TextEncoder, vae: VAE, batch_size: int = 4
) -> Pipeline:
    """A pipeline of loaded parts, which stay where they are: a preview in training."""
    parts = Parts(
        transformer=Part(lambda: transformer, keep=True),
        text_encoder=Part(lambda: text_encoder, keep=True),
        vae=Part(lambda: vae, keep=True),
        downsampling=vae.downsampling,
    )
    runtime = RuntimeConfig(device=str(next(transformer.parameters()).device), batch_size=batch_size)
    return Pipeline(config, parts, transformer_config=transformer.config, runtime=runtime)


def _objective(config: PipelineConfig) -> "Objective":
    from model.diffusion import make_objective

    try:
        return make_objective(config.objective, config.objective_settings)
    except ValueError as error:
        raise UserError(f"pipeline.json: {error}") from error
