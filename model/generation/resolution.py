"""Sides of images: the requested size, the drawn size and PixArt's table of sizes; the resize and crop to one of them.

Source: PixArt-alpha, section 2.3 (40 aspect ratios from 0.25 to 4); the tables are those of diffusers' PixArt pipelines, which
list 33 of them up to 1024 px and 40 at 2048.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foundry.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BINNED_RESOLUTIONS = (256, 512, 1024, 2048)


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """The size drawn and the size handed over, in pixels; they differ with binning only."""

    height: int
    width: int
    final_height: int
    final_width: int

    @property
    def resized(self) -> bool:
        """Whether the drawn image is scaled and cropped."""
        return (self.height, self.width) != (self.final_height, self.final_width)


def image_size(height: int | None, width: int | None, *, resolution: int, binning: bool, multiple: int) -> ImageSize:
    """Size to draw for a request of height x width; None: the resolution of the model.

    With binning the nearest size in the resolution's table is drawn; resolutions without a table have none. Raises UserError
    for sides that are drawn and not multiples of `multiple`, the side of a patch, and for sides below 1.
    """
    height = resolution if height is None else height
    width = resolution if width is None else width
    drawn = (height, width)
    if binning and resolution in BINNED_RESOLUTIONS and min(drawn) > 0:
        from diffusers.image_processor import PixArtImageProcessor

        drawn = PixArtImageProcessor.classify_height_width_bin(height, width, ratios=size_table(resolution))
    check_sides(height=drawn[0], width=drawn[1], multiple=multiple)
    return ImageSize(height=drawn[0], width=drawn[1], final_height=height, final_width=width)


def size_table(resolution: int) -> Mapping[str, list[float]]:
    """Aspect ratio (height / width, as text) to height and width. KeyError for a resolution without a table."""
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha as alpha
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_sigma as sigma

    tables: dict[int, Mapping[str, list[float]]] = {
        256: alpha.ASPECT_RATIO_256_BIN,
        512: alpha.ASPECT_RATIO_512_BIN,
        1024: alpha.ASPECT_RATIO_1024_BIN,
        2048: sigma.ASPECT_RATIO_2048_BIN,
    }
    return tables[resolution]


def check_sides(*, height: int, width: int, multiple: int) -> None:
    """Raises UserError unless both sides are positive multiples of `multiple` pixels."""
    if min(height, width) < 1 or height % multiple or width % multiple:
        near = [max(multiple, round(side / multiple) * multiple) for side in (height, width)]
        raise UserError(
            f"height and width must be multiples of {multiple} px, found {height} x {width}: try {near[0]} x {near[1]}"
        )


def fit(pixels: "npt.NDArray[np.uint8]", size: tuple[int, int]) -> "npt.NDArray[np.uint8]":
    """The image (H, W, 3) at exactly `size` (height, width): resized so that it covers it, the rest cropped on both sides.

    The aspect ratio is kept. An image that covers the size to the pixel, as decoding leaves most, is only cropped.
    """
    import numpy as np
    from PIL import Image

    height, width = size
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    if covering_size(pixels.shape[0], pixels.shape[1], size) == pixels.shape[:2]:
        return np.ascontiguousarray(pixels[top : top + height, left : left + width])
    scale = max(height / pixels.shape[0], width / pixels.shape[1])
    # Never below zero: rounding may take off a little more than there is.
    beyond = [max(0.0, (side - kept / scale) / 2) for side, kept in ((pixels.shape[1], width), (pixels.shape[0], height))]
    # Only what is kept is resized: an image of 10 x 10,000 pixels must not become one of 256 x 256,000.
    box = (beyond[0], beyond[1], pixels.shape[1] - beyond[0], pixels.shape[0] - beyond[1])
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS, box=box))


def covering_size(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """The least size of the image's own aspect ratio, to the pixel, that covers `size`."""
    scale = max(size[0] / height, size[1] / width)
    return max(size[0], _round(height * scale)), max(size[1], _round(width * scale))


def _round(side: float) -> int:
    """Rounds to the nearest pixel, halves up."""
    return math.floor(side + 0.5)
