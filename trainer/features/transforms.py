"""The one way from a decoded image to what the VAE sees: resized so that it covers its bucket, cropped in the centre, -1..1.

Images are resized once, by Lanczos with antialiasing. Nothing is squashed and nothing is flipped: captions say "left".
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from trainer.features.buckets import Size

Pixels = npt.NDArray[np.uint8]
"""(H, W, 3) RGB."""


def fit(pixels: Pixels, size: "Size") -> Pixels:
    """The image at exactly `size` (height, width): resized so that it covers it, aspect kept, the rest cropped on both sides.

    An image that covers the size to the pixel, as decoding leaves most, is only cropped.
    """
    from PIL import Image

    height, width = size
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    if _covering_size(pixels.shape[0], pixels.shape[1], size) == pixels.shape[:2]:
        return np.ascontiguousarray(pixels[top : top + height, left : left + width])
    scale = max(height / pixels.shape[0], width / pixels.shape[1])
    # Never below zero: rounding may take off a little more than there is.
    beyond = [max(0.0, (side - kept / scale) / 2) for side, kept in ((pixels.shape[1], width), (pixels.shape[0], height))]
    # Only what is kept is resized: an image of 10 x 10,000 pixels must not become one of 256 x 256,000.
    box = (beyond[0], beyond[1], pixels.shape[1] - beyond[0], pixels.shape[0] - beyond[1])
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS, box=box))


def decoding_side_px(height: int, width: int, sizes: Sequence["Size"]) -> int:
    """To which shorter side an image of height x width may be reduced while it is decoded and still cover all `sizes`."""
    return max(min(_covering_size(height, width, size)) for size in sizes)


def to_signed(pixels: "torch.Tensor") -> "torch.Tensor":
    """Images uint8 (B, H, W, 3) as float32 (B, 3, H, W) in -1..1."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def _covering_size(height: int, width: int, size: "Size") -> "Size":
    """The least size of the image's own aspect ratio, to the pixel, that covers `size`."""
    scale = max(size[0] / height, size[1] / width)
    return max(size[0], _round(height * scale)), max(size[1], _round(width * scale))


def _round(side: float) -> int:
    """To the nearest pixel, halves up."""
    return math.floor(side + 0.5)
