"""Puts the images themselves into samples, in the Image convention of `datasets`: a struct of bytes and a name."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 512


@dataclass(frozen=True)
class Embedded:
    """`samples` with their images and without references; `dropped` are rows of schema.DROPPED."""

    samples: "pa.Table"
    dropped: "pa.Table"


def embed_images(samples: "pa.Table") -> Iterator[Embedded]:
    """Reads the images of samples, some rows at a time. An image that cannot be read, or is another one now, is dropped.

    Raises StoreError where a store fails, so that nothing is dropped that may be read another day.
    """
    for start in range(0, len(samples), _ROWS):
        yield _embed(samples.slice(start, _ROWS))


def _embed(samples: "pa.Table") -> Embedded:
    import pyarrow as pa

    from dataset_builder.dataset.caption_steps import EMBED
    from foundry.images.reader import ImageReader, content_hash, reference_of
    from foundry.storage.schema import DROPPED, SAMPLES
    from foundry.units.rejection import ImageError

    rows = samples.select(
        ["key", "run", "uri", "member", "byte_offset", "byte_length", "row", "content_hash", "format"]
    ).to_pylist()
    images, dropped = [], []
    with ImageReader() as reader:
        reader.expect([{**row, "sidecars": []} for row in rows])
        for row in rows:
            image, reason = None, ""
            try:
                data = reader.read(reference_of(row))
                image = {"bytes": data, "path": f"{row['key']}.{(row['format'] or 'bin').lower()}"}
                reason = "" if content_hash(data) == row["content_hash"] else "the image has changed since it was captioned"
            except ImageError as error:
                reason = error.reason
            if reason:
                dropped.append({"key": row["key"], "run": row["run"], "step": EMBED, "reason": reason})
            images.append(None if reason else image)
    column = pa.array(images, SAMPLES.field("image").type)
    table = samples.set_column(SAMPLES.get_field_index("image"), SAMPLES.field("image"), column).filter(column.is_valid())
    for name in ("uri", "member", "byte_offset", "byte_length", "row"):
        field = SAMPLES.field(name)
        table = table.set_column(SAMPLES.get_field_index(name), field, pa.nulls(len(table), field.type))
    return Embedded(table.cast(SAMPLES), pa.Table.from_pylist(dropped, schema=DROPPED))
