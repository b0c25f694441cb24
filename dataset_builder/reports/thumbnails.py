"""Thumbnails of images for a page: JPEGs, in base64 where they are part of it."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from foundry.errors import StoreError
from foundry.images.decoding import DecodeLimits, decode_image
from foundry.images.reader import ImageReader, content_hash, reference_of
from foundry.units.rejection import ImageError

_SIDE_PX = 220


@dataclass(frozen=True, kw_only=True)
class Thumbnails:
    """Thumbnails by key, and why there are none of other images, a line each."""

    by_key: dict[str, str]
    unread: list[str]


def read_thumbnails(rows: Sequence[Mapping[str, Any]]) -> Thumbnails:
    """Reads the images of these rows, which have a key, and a reference or the bytes themselves as `data`.

    Of a row with a `content_hash`, an image whose bytes are others by now is left out.
    """
    found: dict[str, str] = {}
    unread: list[str] = []
    with ImageReader() as reader:
        for index, row in enumerate(rows):
            try:
                found[row["key"]] = thumbnail(image_data(reader, row))
            except ImageError as error:
                unread.append(f"{row['key']}: {error.message}")
            except StoreError as error:
                unread.append(f"{row['key']}: {error}")
                if error.may_pass:  # the store does not answer: each of the others would be waited for as long
                    unread += [f"{later['key']}: not tried" for later in rows[index + 1 :]]
                    break
    return Thumbnails(by_key=found, unread=unread)


def image_data(reader: ImageReader, row: Mapping[str, Any]) -> bytes:
    """The bytes of a row's image. Raises ImageError, also where its `content_hash` is of other bytes, and StoreError."""
    data: bytes = row.get("data") or reader.read(reference_of(row))
    if row.get("content_hash", content_hash(data)) != content_hash(data):
        raise ImageError("changed", "its bytes have changed since it was captioned")
    return data


def thumbnail(data: bytes) -> str:
    """A JPEG in base64. Raises ImageError."""
    return base64.b64encode(thumbnail_jpeg(data)).decode()


def thumbnail_jpeg(data: bytes, *, side_px: int = _SIDE_PX) -> bytes:
    """A JPEG whose shorter side has about this length, and the longer one at most twice it. Raises ImageError."""
    pixels = decode_image(data, limits=DecodeLimits(), target_side_px=side_px).pixels
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image.thumbnail((2 * side_px, 2 * side_px))
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
