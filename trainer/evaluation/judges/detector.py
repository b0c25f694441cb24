"""Zero-shot detectors of transformers, OWL-ViT and OWLv2: boxes of named objects, each with a confidence.

A detector is asked about the objects of one image's prompt and about no others; each box is assigned to the likeliest of them.
Images are processed one by one, because a batch pads the queries, so that an image's neighbours would change its boxes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from foundry.errors import UserError
from trainer.evaluation.judges.models import JudgeModel, Placement, check_finite

Pixels = npt.NDArray[np.uint8]

MODEL_TYPES = ("owlvit", "owlv2")
"""Model types as transformers names them."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """Box in pixels, from the upper left corner of the image."""

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
"""Finds the named objects in an image (H, W, 3), the surest first."""


class Detector:
    """A loaded detector. Deterministic."""

    def __init__(self, model: Any, processor: Any, *, threshold: float) -> None:
        self.model = model
        self.processor = processor
        self.threshold = threshold

    def __call__(self, image: Pixels, names: Sequence[str]) -> list[Detection]:
        """See Detect; confidences up to the threshold do not count."""
        import torch

        queries = [f"a photo of a {name}" for name in names]
        inputs = self.processor(images=image, text=[queries], truncation=True, return_tensors="pt").to(self.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        with torch.inference_mode():
            outputs = self.model(**inputs)
        for values in (outputs.logits, outputs.pred_boxes):
            check_finite(values, name=self.model.name_or_path)
        found = self.processor.image_processor.post_process_object_detection(
            outputs, threshold=self.threshold, target_sizes=[image.shape[:2]]
        )[0]
        rows = zip(found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True)
        detections = [
            Detection(name=names[label], confidence=score, box=Box(left=left, top=top, right=right, bottom=bottom))
            for label, score, (left, top, right, bottom) in rows
        ]
        return sorted(detections, key=lambda one: -one.confidence)


def load_detector(source: JudgeModel, placement: Placement, *, threshold: float) -> Detector:
    """Reads the weights. Raises UserError for another kind of model."""
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    if source.model_type not in MODEL_TYPES:
        raise UserError(f"{source.name} is a {source.model_type}: expected a detector, {' or '.join(MODEL_TYPES)}")
    model = source.load_network(AutoModelForZeroShotObjectDetection.from_pretrained, placement)
    return Detector(model, source.load(AutoProcessor.from_pretrained), threshold=threshold)


def without_repeats(found: Sequence[Detection], *, max_overlap: float) -> list[Detection]:
    """The boxes without those that overlap a more confident one of the same name by more than `max_overlap`; the most confident
    first."""
    kept: list[Detection] = []
    for one in found:
        if all(one.name != other.name or one.box.overlap(other.box) <= max_overlap for other in kept):
            kept.append(one)
    return kept
