"""Thumbnails of images for a page: JPEGs in base64."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from foundry.errors import StoreError
from foundry.images.decoding import DecodeLimits, decode_image
from foundry.images.reader import ImageReader, reference_of
from foundry.units.rejection import ImageError

_SIDE_PX = 220


@dataclass(frozen=True, kw_only=True)
class Thumbnails:
    """Thumbnails by key, and why there are none of other images, a line each."""

    by_key: dict[str, str]
    unread: list[str]


def read_thumbnails(rows: Sequence[Mapping[str, Any]]) -> Thumbnails:
    """Reads the images of these rows, which have a key, and a reference or the bytes themselves as `data`."""
    found: dict[str, str] = {}
    unread: list[str] = []
    with ImageReader() as reader:
        for index, row in enumerate(rows):
            try:
                found[row["key"]] = thumbnail(row.get("data") or reader.read(reference_of(row)))
            except ImageError as error:
                unread.append(f"{row['key']}: {error.message}")
            except StoreError as error:
                unread.append(f"{row['key']}: {error}")
                if error.may_pass:  # the store does not answer: each of the others would be waited for as long
                    unread += [f"{later['key']}: not tried" for later in rows[index + 1 :]]
                    break
    return Thumbnails(by_key=found, unread=unread)


def thumbnail(data: bytes) -> str:
    """A JPEG in base64. Raises ImageError."""
    pixels = decode_image(data, limits=DecodeLimits(), target_side_px=_SIDE_PX).pixels
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image.thumbnail((2 * _SIDE_PX, 2 * _SIDE_PX))
    image.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
