"""Images under way, which take their steps together: each has its own seed, prompt, guidance, sampler and number of steps.

The network is told a timestep for each image, so that an image can join the others at any step and leave when it is done. What
must be the same for all of a batch is the size, and whether they are guided, and by what.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from model.dit import Captions, DiT
from model.generation.pipeline import Pipeline
from model.generation.request import GenerationRequest
from model.generation.resolution import ImageSize
from model.sampling import Conditioning, Denoising, LatentEdit, Predictor, draw_noise, image_generators, make_predictor


class Kind(NamedTuple):
    """What images of one batch share."""

    size: ImageSize
    guided: bool
    routed: bool


@dataclass(eq=False, kw_only=True)
class Row:
    """An image under way."""

    request: GenerationRequest
    kind: Kind
    captions: Captions
    """That of the image alone."""
    negatives: Captions | None
    """With guidance by a prompt."""
    generator: torch.Generator
    denoising: Denoising


def new_row(
    pipeline: Pipeline,
    request: GenerationRequest,
    image: int,
    *,
    captions: Captions,
    negatives: Captions | None,
    edit: LatentEdit | None,
) -> Row:
    """An image of a request before its first step."""
    size, sampling = pipeline.check(request), request.sampling
    (generator,) = generators = image_generators([request.image_seed(image)])
    noise = draw_noise(generators, pipeline.latent_shape(size)).to(pipeline.runtime.device)
    return Row(
        request=request,
        kind=Kind(size, sampling.guided, sampling.routed),
        captions=captions,
        negatives=negatives if sampling.guided else None,
        generator=generator,
        denoising=Denoising(pipeline.objective, sampling, noise=noise, generators=generators, edit=edit),
    )


class Batch:
    """The images of one kind. What depends on their captions alone is computed again when images come or go."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._rows: tuple[Row, ...] = ()
        self._predict: Predictor | None = None

    def step(self, rows: Sequence[Row]) -> None:
        """Takes a step with each of the images, which are of one kind and not done."""
        with torch.no_grad():
            if self._predict is None or self._rows != tuple(rows):
                self._rows, self._predict = tuple(rows), self._predictor(rows)
            latents = torch.cat([row.denoising.latents for row in rows])  # (B, C, h, w)
            timesteps = torch.stack([row.denoising.timestep.float() for row in rows])  # (B,)
            for row, prediction in zip(rows, self._predict(latents, timesteps).split(1), strict=True):
                row.denoising.advance(prediction)

    def _predictor(self, rows: Sequence[Row]) -> Predictor:
        pipeline, kind = self._pipeline, rows[0].kind
        transformer: DiT = pipeline.parts.transformer.get()
        sizes, ratios = pipeline.micro_conditions(kind.size, len(rows))
        scales = torch.tensor([row.request.sampling.scale for row in rows], device=pipeline.runtime.device)
        conditioning = Conditioning(
            captions=Captions.cat([row.captions for row in rows]),
            routed=pipeline.config.routed,
            negative_captions=Captions.cat([row.negatives for row in rows if row.negatives]) if kind.guided else None,
            sizes=sizes,
            aspect_ratios=ratios,
            guidance_scales=scales.view(-1, 1, 1, 1),
        )
        generators = [row.generator for row in rows]
        return make_predictor(transformer, conditioning, rows[0].request.sampling, generators=generators)
