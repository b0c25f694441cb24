"""Zero-shot detectors of transformers: boxes of named objects, each with a confidence.

A detector is asked about the objects of one image's prompt and about no others. OWL-ViT and OWLv2 are asked about all of them
at once, and each box goes to the likeliest one; Grounding DINO is asked about one at a time. Images go through one by one:
OWL's queries are filled up in a batch, which would let an image's neighbours change its boxes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset_builder.command_line import UserError
from trainer.benchmarks.judge_model import JudgeModel, Placement

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Box:
    """In pixels, from the upper left corner of the image."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def centre(self) -> tuple[float, float]:
        """x and y."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        return self.right - self.left, self.bottom - self.top

    def scaled(self, factor: float) -> "Box":
        """The same in an image that is `factor` times as large."""
        left, top, right, bottom = (factor * value for value in (self.left, self.top, self.right, self.bottom))
        return Box(left=left, top=top, right=right, bottom=bottom)

    def overlap(self, other: "Box") -> float:
        """Intersection over union."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        shared = max(0.0, width) * max(0.0, height)
        union = float(np.prod(self.size) + np.prod(other.size)) - shared
        return shared / union if union > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Detection:
    """An object that was found."""

    name: str
    confidence: float
    box: Box


Detect = Callable[[Pixels, Sequence[str]], list[Detection]]
"""What is found in an image (H, W, 3) of the named objects, the surest first."""


@dataclass(frozen=True)
class _Loaded:
    model: Any
    processor: Any
    threshold: float

    def find(self, image: Pixels, queries: Sequence[str]) -> list[tuple[int, float, Box]]:
        """Number of the query, confidence and box of whatever is above the threshold."""
        import torch

        inputs = self.processor(images=image, text=[list(queries)], truncation=True, return_tensors="pt").to(self.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        with torch.inference_mode():
            outputs = self.model(**inputs)
        found = self.processor.image_processor.post_process_object_detection(
            outputs, threshold=self.threshold, target_sizes=[image.shape[:2]]
        )[0]
        return [
            (int(label), float(confidence), Box(left=left, top=top, right=right, bottom=bottom))
            for label, confidence, (left, top, right, bottom) in zip(
                found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True
            )
        ]


def load_detector(source: JudgeModel, placement: Placement, *, threshold: float) -> Detect:
    """Reads the weights. `threshold`: confidences below are no finds. Raises UserError for a kind of model not known here."""
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    kind = KINDS.get(source.model_type)
    if kind is None:
        raise UserError(f"{source.name} is a {source.model_type}: expected a detector, one of {', '.join(KINDS)}")
    model = source.load(AutoModelForZeroShotObjectDetection.from_pretrained, dtype=placement.dtype, use_safetensors=True)
    processor = source.load(AutoProcessor.from_pretrained)
    loaded = _Loaded(model.to(placement.device).eval(), processor, threshold)
    return lambda image, names: sorted(kind(loaded, image, names), key=lambda one: -one.confidence)


def _all_at_once(loaded: _Loaded, image: Pixels, names: Sequence[str]) -> list[Detection]:
    found = loaded.find(image, [f"a photo of a {name}" for name in names])
    return [Detection(name=names[label], confidence=confidence, box=box) for label, confidence, box in found]


def _one_by_one(loaded: _Loaded, image: Pixels, names: Sequence[str]) -> list[Detection]:
    return [
        Detection(name=name, confidence=confidence, box=box)
        for name in names
        for _, confidence, box in loaded.find(image, [name])
    ]


KINDS: dict[str, Callable[[_Loaded, Pixels, Sequence[str]], list[Detection]]] = {
    "owlvit": _all_at_once,
    "owlv2": _all_at_once,
    "grounding-dino": _one_by_one,
}
"""By transformers' model_type."""


def without_repeats(found: Sequence[Detection], *, max_overlap: float) -> list[Detection]:
    """Without boxes that overlap a surer one of the same name by more than `max_overlap`; the surest first."""
    kept: list[Detection] = []
    for one in found:
        if all(one.name != other.name or one.box.overlap(other.box) <= max_overlap for other in kept):
            kept.append(one)
    return kept
