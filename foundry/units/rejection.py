"""Rejection of an image: the reasons, a failure with one, the error that carries one, and how many a run may have."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

REJECTION_REASONS = {
    "unreadable": "the bytes could not be read: missing file, no permission, a reference beyond the end",
    "empty": "zero bytes",
    "too_many_bytes": "larger than max_image_bytes",
    "not_an_image": "no decoder knows the format",
    "broken": "truncated or corrupt image data",
    "too_many_pixels": "larger than max_image_pixels",
    "too_small": "a side is shorter than min_side_px",
    "too_narrow": "the longer side is more than 50 times the shorter one",
    "opted_out": "the server of the image, or its robots.txt, does not want it to be used",
    "changed": "the bytes are no longer those that were captioned",
    "bad_sidecar": "the JSON or text next to the image cannot be parsed",
    "no_caption": "there is neither a caption nor an alt text to train on",
    "no_class_label": "there is no class label to train on",
    "no_earlier_caption": "the run that captions are taken from has none of it, and the prompt has no fallback",
    "out_of_range": "its latents exceed the range of float16, 65504",
    "model_error": "the model raised an error for this image and no other",
    "not_finite": "the model computed NaN or infinity for this image",
    "worker_died": "the worker process died each time it had this image",
}

DEFAULT_SHARE = 0.01
"""Share of the images that may be rejected where nothing else is said."""

ALWAYS_ALLOWED_REJECTIONS = 100
"""Number that may be rejected where nothing else is said, so that one bad folder does not stop a small run."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Failure of one image: a key of REJECTION_REASONS, and what was found."""

    reason: str
    message: str


class ImageError(Exception):
    """One image cannot be used. `reason` is a key of REJECTION_REASONS; the message says what was found."""

    def __init__(self, reason: str, message: str) -> None:
        assert reason in REJECTION_REASONS, reason
        super().__init__(message)
        self.reason = reason
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageError, (self.reason, self.message)


def max_rejected_problems(share: float | None) -> list[str]:
    """Faults of a command's setting max_rejected; none for a share, or None for the default."""
    return [] if share is None or 0 <= share <= 1 else [f"max_rejected must be between 0 and 1, found {share}"]


def retry_problems(asked: Collection[str] | None, *, reasons: Collection[str]) -> list[str]:
    """Faults of the setting retry_rejected of a command that rejects for these reasons."""
    unknown = ", ".join(sorted(set(asked or ()) - set(reasons)))
    return [f"retry_rejected: no image is rejected for {unknown}, the reasons are {', '.join(reasons)}"] if unknown else []


def allowed_rejections(share: float | None, num_images: int) -> int:
    """The budget of rejected images for a whole run; None is 1 % of them, but at least 100."""
    if share is None:
        return max(ALWAYS_ALLOWED_REJECTIONS, int(DEFAULT_SHARE * num_images))
    return int(share * num_images)
