"""Images of a run or a data set in full size, by their keys."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from dataset_builder.reports.thumbnails import image_data
from dataset_builder.sql.views import literal
from foundry.errors import UserError
from foundry.images.decoding import DecodeLimits, decode_image
from foundry.images.index import REFERENCE_NAMES
from foundry.images.reader import ImageReader
from foundry.units.rejection import ImageError

if TYPE_CHECKING:
    from dataset_builder.sql.database import Database


def read_pixels(database: "Database", keys: Sequence[str], *, url: str) -> list[Image.Image]:
    """The images with these keys of the run or data set at `url`, upright, RGB, in the order of the keys. Raises UserError."""
    rows = {row["key"]: row for row in _rows(database, keys)}
    if missing := [key for key in keys if key not in rows]:
        raise UserError(f"{url} has no image {missing[0]!r}: give keys of its view images")
    limits = DecodeLimits(**database.settings.get("limits", {}))
    with ImageReader() as reader:
        reader.expect([row for row in rows.values() if row["data"] is None])
        return [_image(reader, rows[key], limits) for key in keys]


def _rows(database: "Database", keys: Sequence[str]) -> list[dict[str, Any]]:
    """Keys, references and hashes; of a data set with images, their bytes as `data`."""
    if not keys:
        return []
    embedded = "(SELECT m.image.bytes FROM samples m WHERE m.key = i.key)" if "samples" in database.comments else "NULL"
    columns = ", ".join(("key", *REFERENCE_NAMES, "content_hash"))
    chosen = ", ".join(map(literal, map(str, keys)))
    return list(database.fetch(f"SELECT {columns}, {embedded} AS data FROM images i WHERE key IN ({chosen})").to_pylist())


def _image(reader: ImageReader, row: Mapping[str, Any], limits: DecodeLimits) -> Image.Image:
    known = row if row["content_hash"] else {name: value for name, value in row.items() if name != "content_hash"}
    try:
        return Image.fromarray(decode_image(image_data(reader, known), limits=limits).pixels)
    except ImageError as error:
        raise UserError(f"{row['key']}: {error.message}: leave its key out, or look at {row['uri']}") from None
