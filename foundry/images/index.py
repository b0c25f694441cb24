"""Index of images: its table and those of read and rejected images, the reference to an image, and the rows of loose files.

Loose files in a folder are listed, never opened.
"""

import itertools
import posixpath
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa

from foundry.storage.file_kinds import IMAGE_SUFFIXES, SIDECAR_SUFFIXES, PassedOver, is_mask, split_suffix, stem_of
from foundry.storage.locations import Listing, join, list_files, parent

MAX_ROWS = 65_536
"""Rows of a table at most."""
_MAX_CHARS = 64 << 20
"""References of a table that hold more characters than that are data URLs: a table of them has fewer rows."""
LARGEST_SCENE_PX = 256
"""Scenes of the small world are 64 px wide; a copy that somebody enlarged is hardly larger than this."""
LISTED = "(path)"
"""The member of a reference into a list: the row names no image, so there is nothing to read."""
# Where the bytes of an image are. uri is a local path or an fsspec URL. In a tar, member is the path inside it and the two
# byte columns delimit the payload; in a Parquet file, member is the column and row the row; in a plain file all four are null.
REFERENCE = [
    pa.field("uri", pa.string(), nullable=False),
    pa.field("member", pa.string()),
    pa.field("byte_offset", pa.int64()),
    pa.field("byte_length", pa.int64()),
    pa.field("row", pa.int64()),
]
REFERENCE_NAMES = tuple(field.name for field in REFERENCE)
# A file that belongs to an image and is next to it: a caption or a JSON. A null uri means: in the image's own tar.
_SIDECAR = pa.struct(
    [
        pa.field("suffix", pa.string(), nullable=False),
        pa.field("uri", pa.string()),
        pa.field("byte_offset", pa.int64()),
        pa.field("byte_length", pa.int64()),
    ]
)
# One row per planned image. metadata is a JSON object of the columns that the source carried.
INDEX = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        *REFERENCE,
        pa.field("sidecars", pa.list_(_SIDECAR), nullable=False),
        pa.field("alt_text", pa.string()),
        pa.field("class_label", pa.string()),
        pa.field("metadata", pa.string()),
    ]
)
SOURCE_INDEX = pa.schema(
    [pa.field("stem", pa.string(), nullable=False), pa.field("relative", pa.string(), nullable=False), *list(INDEX)[1:]]
)
"""stem: the file's name without its suffix, or the row's own key. relative: the path below the root that the user gave, for
a tar or Parquet file followed by the member (`a.tar/sa_1.jpg`) or the row (`a.parquet#17`); it tells equal stems apart."""


class SidecarRow(NamedTuple):
    """One entry of the column `sidecars`; see index.INDEX."""

    suffix: str
    uri: str | None = None
    byte_offset: int | None = None
    byte_length: int | None = None


SidecarsByStem = Mapping[str, tuple[SidecarRow, ...]]
# One row per image that was read, with what only its bytes tell. Areas of masks are in pixels of the original image.
IMAGES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        *REFERENCE,
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("format", pa.string()),
        pa.field("alt_text", pa.string()),
        pa.field("class_label", pa.string()),
        pa.field("num_masks", pa.int32()),
        pa.field("mask_area_px", pa.int64()),
        pa.field("metadata", pa.string()),
    ]
)
# One row per image that is not used, with a reason of foundry/units/rejection.py.
REJECTED = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        *REFERENCE,
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)


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


class FolderNames(NamedTuple):
    """The images in a folder and the files that may describe them: names in order, joined by `/` to take the least memory."""

    uri: str
    relative: str
    names: str


def folder_names(listing: Listing, *, ignore: Sequence[str], passed_over: PassedOver) -> FolderNames | None:
    """Names in a listed folder that the index needs; None if it holds no image. Images that fit a pattern of `ignore` are
    counted as masks, and so are files that would describe an image if there were one of their name."""
    suffixes = {name: split_suffix(name)[1] for name in listing.files}
    masks = [name for name, suffix in suffixes.items() if suffix in IMAGE_SUFFIXES and is_mask(name, ignore)]
    passed_over.masks += len(masks)
    for name in masks:
        del suffixes[name]
    if IMAGE_SUFFIXES.isdisjoint(suffixes.values()):
        return None
    kept = [name for name, suffix in suffixes.items() if suffix in IMAGE_SUFFIXES or suffix in SIDECAR_SUFFIXES]
    stems = {split_suffix(name)[0] for name in (*kept, *masks) if suffixes.get(name) not in SIDECAR_SUFFIXES}
    passed_over.sidecars += sum(suffixes[name] in SIDECAR_SUFFIXES and split_suffix(name)[0] not in stems for name in kept)
    return FolderNames(listing.uri, listing.relative, "/".join(kept))


def to_tables(rows: Iterable[IndexRow]) -> Iterator[pa.Table]:
    """Tables of at most MAX_ROWS rows in SOURCE_INDEX, in the order of the rows; of fewer where data URLs hold the images."""
    for batch in _batches(rows):
        columns = zip(SOURCE_INDEX, zip(*batch, strict=True), strict=True)
        arrays = [_sidecars(column) if field.name == "sidecars" else pa.array(column, field.type) for field, column in columns]
        yield pa.Table.from_arrays(arrays, schema=SOURCE_INDEX)


def index_folders(folders: Iterable[FolderNames], *, listed: Container[str]) -> Iterator[IndexRow]:
    """The image files of folders, each with the files that share its stem; `listed` holds locations to leave out."""
    for folder in folders:
        files = folder.names.split("/")
        sidecars = _by_stem(folder.uri, files)
        for name in files:
            stem, suffix = split_suffix(name)
            if suffix in IMAGE_SUFFIXES and (location := join(folder.uri, name)) not in listed:
                relative = f"{folder.relative}/{name}" if folder.relative else name
                yield IndexRow(stem, relative, location, sidecars=sidecars.get(stem, ()))


def index_file(location: str) -> Iterator[IndexRow]:
    """A single image file, with its sidecars."""
    sidecars = sidecars_in(parent(location))
    stem = stem_of(location)
    yield IndexRow(stem, posixpath.basename(location), location, sidecars=sidecars.get(stem, ()))


def sidecars_in(folder: str) -> SidecarsByStem:
    """The files in a folder that may describe images, by stem. Raises UserError if it cannot be listed."""
    return _by_stem(folder, list_files(folder))


@dataclass(frozen=True, kw_only=True)
class ImageReference:
    """Location of the bytes of one image; see the comment on REFERENCE for what the fields mean by kind of container."""

    uri: str
    member: str | None = None
    byte_offset: int | None = None
    byte_length: int | None = None
    row: int | None = None

    @property
    def web_address(self) -> str | None:
        """The address at which anybody can fetch just this image; None if it has none, or one with a password in it."""
        is_part = any(value is not None for value in (self.member, self.byte_offset, self.row))
        address = urlsplit(self.uri)
        return None if is_part or address.scheme not in ("http", "https") or address.username is not None else self.uri


def refer_to_embedded(rows: Iterable[dict[str, Any]], *, uri: str, first_row: int) -> list[dict[str, Any]]:
    """Rows of a file of samples, from row `first_row` on; one without a uri, whose image is embedded, refers to it there."""
    return [
        row if row["uri"] is not None else row | {"uri": uri, "member": "image", "row": number}
        for number, row in enumerate(rows, start=first_row)
    ]


def _batches(rows: Iterable[IndexRow]) -> Iterator[list[IndexRow]]:
    batch: list[IndexRow] = []
    num_chars = 0
    for row in rows:
        batch.append(row)
        num_chars += len(row.uri)
        if len(batch) >= MAX_ROWS or num_chars > _MAX_CHARS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


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


def _by_stem(folder: str, names: Iterable[str]) -> SidecarsByStem:
    found: dict[str, dict[str, SidecarRow]] = {}
    for name in names:
        stem, suffix = split_suffix(name)
        if suffix in SIDECAR_SUFFIXES:
            found.setdefault(stem, {})[suffix] = SidecarRow(suffix, join(folder, name))
    return {stem: tuple(rows[suffix] for suffix in SIDECAR_SUFFIXES if suffix in rows) for stem, rows in found.items()}
