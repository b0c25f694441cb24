"""Costs of a project's steps: captions, scores, features and each stage of the training.

A step's GPU-hours are its operations at the plan's share of the peak; those of captions, whose generation is bound by memory
rather than by operations, come from a published speed. Reading, decoding and all that CPUs do are not counted: where a step
reads faster than its storage gives, that is the bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from trainer.planning.config import PlanConfig, RungPlan

CAPTIONS_PER_S = 20.0
"""Captions a second of a model with CAPTIONER_PARAMETERS on an H200, by vLLM. Source: Photoroom, PRX, part 4 (Qwen3-VL-8B)."""
CAPTIONER_PARAMETERS = 8e9
CAPTIONER_FLOPS = 989e12
"""Peak of that GPU."""
_CAPTION_ROW_BYTES = 1000
"""A caption as captioner.run stores it, with its image's index, nouns and provenance, compressed."""
_SCORE_ROW_BYTES = 100
_CLIP_IMAGE = (1024, 24, 257)
"""Width, depth and tokens of ViT-L/14's image tower at 224 px, the CLIP that scores. Source: CLIP (2103.00020), table 20."""
_CLIP_TEXT = (768, 12, 77)
"""The same of its text tower."""


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Cost of a step."""

    name: str
    num_images: int
    """Images that it works on, or that a training sees."""
    gpu_hours: float | None
    """GPU-hours; None: a plan does not know the models."""
    written_bytes: float
    """Bytes that stay on disk."""
    read_bytes: float
    """Bytes that all workers read."""


def project_costs(rungs: Sequence[RungPlan], config: PlanConfig) -> list[StepCost]:
    """The steps in their order. The images that are captioned are those of the largest data set with captions."""
    assumed = config.assume
    trained = max((rung.dataset.num_images for rung in rungs if rung.disk.texts), default=0)
    images = round(trained / assumed.kept)
    captions = images * assumed.captions_per_image
    pile = images * assumed.image_kb * 1000
    steps = []
    if captions:
        steps = [
            StepCost(
                name="captions",
                num_images=images,
                gpu_hours=captions / (captions_per_s(config) * 3600),
                written_bytes=captions * _CAPTION_ROW_BYTES,
                read_bytes=pile * assumed.captions_per_image,
            ),
            StepCost(
                name="scores",
                num_images=images,
                gpu_hours=_hours(images * _tower_flops(_CLIP_IMAGE) + captions * _tower_flops(_CLIP_TEXT), config),
                written_bytes=captions * _SCORE_ROW_BYTES,
                read_bytes=pile,
            ),
        ]
    for stage, group in groupby(rungs, key=lambda rung: rung.stage):
        of_stage = list(group)
        steps += [_features(stage, of_stage, config), _training(stage, of_stage)]
    return steps


def captions_per_s(config: PlanConfig) -> float:
    """Captions a second of one GPU."""
    assumed = config.assume
    if assumed.captioner_images_per_s is not None:
        return assumed.captioner_images_per_s
    faster = config.device.peak_flops / CAPTIONER_FLOPS
    return CAPTIONS_PER_S * faster * CAPTIONER_PARAMETERS / assumed.captioner_parameters


def kg_co2(gpu_hours: float, config: PlanConfig) -> float | None:
    """Kilograms of CO2 of GPUs at their full power; None if that is unknown."""
    watts = config.device.watts
    return None if watts is None else gpu_hours * watts * config.assume.pue * config.assume.grams_co2_per_kwh / 1e6


def _features(stage: str, rungs: Sequence[RungPlan], config: PlanConfig) -> StepCost:
    """Images of all resolutions are read once; captions are stored as int8."""
    plans = [rung.encoding for rung in rungs]
    images = rungs[0].dataset.num_images
    return StepCost(
        name=f"features of {stage}",
        num_images=images,
        gpu_hours=sum(plan.gpu_hours for plan in plans if plan) if all(plans) else None,
        written_bytes=sum(rung.disk.latents + rung.disk.captions_int8 for rung in rungs),
        read_bytes=images * config.assume.image_kb * 1000,
    )


def _training(stage: str, rungs: Sequence[RungPlan]) -> StepCost:
    return StepCost(
        name=f"training of {stage}",
        num_images=sum(rung.images_seen for rung in rungs),
        gpu_hours=sum(24 * rung.gpu_days for rung in rungs),
        written_bytes=0.0,
        read_bytes=sum(rung.images_seen * rung.reading.int8 / rung.images_per_s for rung in rungs),
    )


def _hours(flops: float, config: PlanConfig) -> float:
    return flops / (config.device.peak_flops * config.utilisation * 3600)


def _tower_flops(tower: tuple[int, int, int]) -> float:
    """FLOPs of a transformer's forward pass: 12 D^2 weights a block, and attention."""
    width, depth, tokens = tower
    return float(depth * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width))
