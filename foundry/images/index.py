"""The table that indexing a source yields: schema.INDEX before the run has given its keys."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from foundry.storage.schema import INDEX

MAX_ROWS = 65_536
"""Rows of a table at most."""

LISTED = "(path)"
"""The member of a reference into a list: the row names no image, so there is nothing to read."""

SOURCE_INDEX = pa.schema(
    [pa.field("stem", pa.string(), nullable=False), pa.field("relative", pa.string(), nullable=False), *list(INDEX)[1:]]
)
"""stem: the file's name without its suffix, or the row's own key. relative: the path below the root that the user gave, for
a tar or Parquet file followed by the member (`a.tar/sa_1.jpg`) or the row (`a.parquet#17`); it tells equal stems apart."""


class SidecarRow(NamedTuple):
    """One entry of the column `sidecars`; see schema.INDEX."""

    suffix: str
    uri: str | None = None
    byte_offset: int | None = None
    byte_length: int | None = None


class IndexRow(NamedTuple):
    """One row of SOURCE_INDEX. A named tuple and not a dataclass, since 10^8 of them are made."""

    stem: str
    relative: str
    uri: str
    member: str | None = None
    byte_offset: int | None = None
    byte_length: int | None = None
    row: int | None = None
    sidecars: tuple[SidecarRow, ...] = ()
    alt_text: str | None = None
    class_label: str | None = None
    metadata: str | None = None


def to_tables(rows: Iterable[IndexRow]) -> Iterator[pa.Table]:
    """Tables of at most MAX_ROWS rows in SOURCE_INDEX, in the order of the rows."""
    rows = iter(rows)
    while batch := list(itertools.islice(rows, MAX_ROWS)):
        columns = zip(SOURCE_INDEX, zip(*batch, strict=True), strict=True)
        arrays = [_sidecars(column) if field.name == "sidecars" else pa.array(column, field.type) for field, column in columns]
        yield pa.Table.from_arrays(arrays, schema=SOURCE_INDEX)


def _sidecars(column: Sequence[tuple[SidecarRow, ...]]) -> pa.Array:
    """The nested column from its flat parts, several times as fast as from dicts."""
    list_type = SOURCE_INDEX.field("sidecars").type
    flat = list(itertools.chain.from_iterable(column))
    parts = zip(*flat, strict=True) if flat else [()] * len(SidecarRow._fields)
    fields = list(list_type.value_type)
    struct = pa.StructArray.from_arrays(
        [pa.array(part, field.type) for part, field in zip(parts, fields, strict=True)], fields=fields
    )
    offsets = list(itertools.accumulate(map(len, column), initial=0))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), struct, type=list_type)
