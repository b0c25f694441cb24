"""Aspect buckets: the sizes to which images are cropped, the nearest one for each image.

Source: PixArt-alpha, section 2.3: aspect ratios from 0.25 to 4, one of them per batch. The tables of 256, 512, 1024 and 2048 px
are diffusers' (model/generation/resolution.py); those of other resolutions are computed by the same rule.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from foundry.errors import UserError
from model.generation.resolution import BINNED_RESOLUTIONS, covering_size, size_table

if TYPE_CHECKING:
    import torch


Size = tuple[int, int]
"""Height and width, in pixels or in latent pixels."""
Sides = Sequence[int] | npt.NDArray[np.integer[Any]]
MAX_ASPECT = 4.0
Pixels = npt.NDArray[np.uint8]
"""(H, W, 3) RGB."""


def bucket_table(resolution: int, *, multiple: int, square: bool = False) -> tuple[Size, ...]:
    """The sizes in pixels, by rising height; all sides are multiples of `multiple`, the pixels along a patch of the network.

    `square`: the one size resolution x resolution. Raises UserError if `multiple` does not divide the resolution.
    """
    if resolution < 1 or resolution % multiple:
        near = max(multiple, round(resolution / multiple) * multiple)
        raise UserError(f"{resolution} px: expected a multiple of {multiple} px, try {near}", setting="resolution")
    if square:
        return ((resolution, resolution),)
    if resolution in BINNED_RESOLUTIONS:
        sizes = {(int(height), int(width)) for height, width in size_table(resolution).values()}
        if all(side % multiple == 0 for size in sizes for side in size):
            return tuple(sorted(sizes))
    return _computed_table(resolution, multiple)


def nearest_buckets(heights: Sides, widths: Sides, table: Sequence[Size]) -> npt.NDArray[np.int32]:
    """Index in the table, for each image, of the size whose aspect ratio is nearest on a logarithmic scale, int32."""
    aspects = np.log(np.asarray(heights) / np.asarray(widths))  # (n,)
    offered = np.log([height / width for height, width in table])  # (buckets,)
    indices: npt.NDArray[np.int32] = np.abs(aspects[:, None] - offered).argmin(axis=1).astype(np.int32)
    return indices


def decoding_side_px(height: int, width: int, sizes: Sequence["Size"]) -> int:
    """Shorter side to which an image of height x width may be reduced during decoding and still cover all `sizes`."""
    return max(min(covering_size(height, width, size)) for size in sizes)


def to_signed(pixels: "torch.Tensor") -> "torch.Tensor":
    """Images uint8 (B, H, W, 3) as float32 (B, 3, H, W) in -1..1."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def _computed_table(resolution: int, multiple: int) -> tuple[Size, ...]:
    """For each height the width that keeps the area nearest, as far as the aspect ratio stays between 1/4 and 4."""
    area = resolution * resolution
    heights = range(multiple, 2 * resolution + 1, multiple)
    sizes = [(height, max(multiple, round(area / height / multiple) * multiple)) for height in heights]
    return tuple((height, width) for height, width in sizes if 1 / MAX_ASPECT <= height / width <= MAX_ASPECT)
