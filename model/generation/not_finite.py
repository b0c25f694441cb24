"""Images that are NaN or infinite: left out on the way, so that the others are drawn, and named when these are done."""

from collections.abc import Sequence

from foundry.errors import NotFiniteOutput
from model.generation.request import GenerationRequest

_HOPELESS = 16
"""So many images, all of them not finite and no other drawn, end the drawing: the weights are damaged, not an image."""


class NotFiniteImages:
    """The images of a request that were left out, with the reason of each."""

    def __init__(self, request: GenerationRequest, *, num_images: int) -> None:
        self._request = request
        self._num_images = num_images
        self._reasons: dict[int, str] = {}

    def leave_out(self, images: Sequence[int], finite: Sequence[bool], reason: str) -> list[int]:
        """The images that are finite; of the others the reason is kept."""
        pairs = list(zip(images, finite, strict=True))
        self._reasons |= {image: reason for image, is_finite in pairs if not is_finite}
        return [image for image, is_finite in pairs if is_finite]

    def check(self, *, num_seen: int) -> None:
        """Raises NotFiniteOutput once all images were seen, where some were left out; earlier where all of many were."""
        number = len(self._reasons)
        if not number or (num_seen < self._num_images and (number < num_seen or number < _HOPELESS)):
            return
        first, reason = next(iter(self._reasons.items()))
        prompts = self._request.prompts
        of = "" if prompts is None else f" for the prompt {prompts[self._request.caption_index(first)][:80]!r}"
        raise NotFiniteOutput(
            f"{number} of {self._num_images} images cannot be drawn, the first{of} with seed "
            f"{self._request.image_seed(first)}: {reason}"
        )


def not_finite(what: str, *, dtype: str, other: str) -> str:
    """The sentence for an output that is not finite: whose it is, in what number format, why, and what to try."""
    cause = "" if dtype == "float32" else f", or {dtype} overflows; try dtype float32"
    return f"{what} is NaN or infinite in {dtype}: its weights are damaged{cause}; fetch it again, or give {other}"
