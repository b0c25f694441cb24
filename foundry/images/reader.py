"""Image reader: reads the bytes of a reference (a file, a range of a tar, a row of Parquet; local or by fsspec). Neighbouring
ranges of a remote file are fetched together.

Also reads the sidecars of an image (`ImageReader.read_sidecars`) and computes its content hash.
"""

import hashlib
import json
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, Protocol, Self, TypeVar

import pyarrow as pa

from foundry.errors import StoreError
from foundry.images.index import LISTED, ImageReference
from foundry.images.metadata import Carried, map_columns, merge, metadata_json, parse_sidecars
from foundry.images.parquet import ParquetRows
from foundry.images.retries import retried
from foundry.images.web.fetching import Ahead, is_web, web_client
from foundry.images.web.settings import WebSettings
from foundry.storage.locations import data_of, is_data_url, is_url, locate, open_binary, parent, shown
from foundry.units.rejection import ImageError

MAX_SIDECAR_BYTES = 64 << 20
MAX_AHEAD_IMAGE_BYTES = 64 << 20
"""Larger images on the web are fetched when they are read."""
_MAX_OPEN = 16


class _Closable(Protocol):
    def close(self) -> None: ...


OpenedT = TypeVar("OpenedT", bound=_Closable)
_MAX_GAP_BYTES = 64 << 10
_MAX_SPAN_BYTES = 16 << 20
_MAX_BUFFERS = 2
"""Two, since a tar may hold all images first and their JSONs after."""


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """Metadata of an image, named as in index.IMAGES; metadata is a JSON object."""

    alt_text: str | None
    class_label: str | None
    num_masks: int | None
    mask_area_px: int | None
    metadata: str | None


def content_hash(data: bytes) -> str:
    """The first 32 hex digits of the SHA-256 of the encoded image."""
    return hashlib.sha256(data).hexdigest()[:32]


def reference_of(row: Mapping[str, Any]) -> ImageReference:
    """The reference in a row of index.INDEX (or of any table with its columns)."""
    return ImageReference(
        uri=row["uri"],
        member=row.get("member"),
        byte_offset=row.get("byte_offset"),
        byte_length=row.get("byte_length"),
        row=row.get("row"),
    )


class RangeFile:
    """An open file, read by ranges. Of a remote one, expected ranges with small gaps between them are fetched as one span."""

    def __init__(self, uri: str) -> None:
        """Opens the file; raises what the store raises."""
        self._file = open_binary(uri)
        self._is_remote = is_url(uri)
        self._spans: list[tuple[int, int]] = []
        self._buffers: list[tuple[int, bytes]] = []

    def announce(self, offset: int, length: int) -> None:
        """Says that a range of a local file will be read, by this process or others: the operating system reads it at once."""
        if not self._is_remote and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), offset, length, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Closes the file and drops what was fetched."""
        self._buffers.clear()
        self._file.close()

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Plans spans over (offset, length) pairs that will be read; at most 16 MiB each."""
        self._spans = coalesce(ranges) if self._is_remote else []

    def read(self, offset: int, length: int) -> bytes:
        """Exactly the range. Raises EOFError if it ends behind the end of the file."""
        data = self._buffered(offset, length) if self._is_remote else self._fetch(offset, length)
        if len(data) != length:
            raise EOFError(f"bytes {offset:,} to {offset + length:,} end beyond the end of the file")
        return data

    def _buffered(self, offset: int, length: int) -> bytes:
        for start, data in self._buffers:
            if start <= offset and offset + length <= start + len(data):
                return data[offset - start : offset - start + length]
        span = next(((start, end) for start, end in self._spans if start <= offset and offset + length <= end), None)
        if span is None:
            return self._fetch(offset, length)
        # A span is fetched once: whoever returns to it after its buffer is gone gets the bare range.
        self._spans.remove(span)
        data = self._fetch(span[0], span[1] - span[0])
        self._buffers = [*self._buffers[1 - _MAX_BUFFERS :], (span[0], data)]
        return data[offset - span[0] : offset - span[0] + length]

    def _fetch(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(length)


class ImageReader:
    """Reads images and their sidecars; keeps up to 16 tars and Parquet files open until it is closed.

    Fastest when read in the order of the index. Not for several threads at once: give each its own.

        with ImageReader() as reader:
            reader.expect(rows)
            for row in rows:
                data = reader.read(reference_of(row), max_bytes=limits.max_image_bytes)
                facts = reader.read_sidecars(row)
    """

    def __init__(self, *, web: WebSettings | None = None) -> None:
        """`web`: settings of fetching from web addresses; default: WebSettings()."""
        self._web = web or WebSettings()
        self._ahead: Ahead | None = None
        self._tars: OrderedDict[str, RangeFile] = OrderedDict()
        self._parquet: OrderedDict[str, ParquetRows] = OrderedDict()
        self._expected: dict[str, list[tuple[int, int]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all files and ends what is being fetched. The reader can be used again."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        for tar in self._tars.values():
            tar.close()
        for parquet in self._parquet.values():
            parquet.close()
        self._tars.clear()
        self._parquet.clear()

    def expect(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Says which rows of the index will be read: neighbours in a remote tar are then fetched by one request, and files
        on the web many at once.

        Optional; replaces what was expected before.
        """
        if self._ahead is not None:
            self._ahead.close()
        urls = [row["uri"] for row in rows if _is_web_file(reference_of(row))]
        self._ahead = Ahead(web_client(self._web), urls, max_bytes=MAX_AHEAD_IMAGE_BYTES) if urls else None
        self._expected = {}
        for row in rows:
            for part in ({**row, "uri": None}, *(row.get("sidecars") or ())):
                if part.get("byte_offset") is not None and is_url(uri := part["uri"] or row["uri"]):
                    self._expected.setdefault(uri, []).append((part["byte_offset"], part["byte_length"]))
        for opened in self._tars.values():
            opened.expect(())

    def read(self, reference: ImageReference, *, max_bytes: int | None = None) -> bytes:
        """The encoded image.

        Raises ImageError: "unreadable", "empty" or "too_many_bytes" (then it is not read whole); StoreError where the store
        fails or refuses, after a few tries.
        """
        data = self._read_any(reference, max_bytes)
        if not data:
            raise ImageError("empty", f"{_name(reference)} holds no bytes")
        if max_bytes is not None and len(data) > max_bytes:
            raise _too_many_bytes(_name(reference), len(data), max_bytes)
        return data

    def read_encoded(self, reference: ImageReference, *, max_bytes: int | None = None) -> bytes | None:
        """The encoded image, which may be empty; None for a null in Parquet. Raises as `read`, which refuses both."""
        return self._read_any(reference, max_bytes)

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        """Bytes of a tar. Raises ImageError or StoreError."""

        def read() -> bytes:
            return self._open_tar(uri).read(start, length)

        return retried(read, uri=uri, name=f"{uri}, bytes from {start:,}", before_retry=self._close_one)

    def row_group_images(self, uri: str, first_row: int) -> Iterator[pa.Array]:
        """The encoded images of the row group that begins at a row, in batches; nulls where a row names a file instead.

        Raises what the store raises, ValueError where no row group begins there, and pa.ArrowException for a damaged file.
        """
        return self._open_parquet(uri).group_images(first_row)

    def announce(self, uri: str, start: int, length: int) -> None:
        """Says that bytes of a local tar will be read; one that cannot be opened says so when it is read."""
        with suppress(OSError, StoreError):
            self._open_tar(uri).announce(start, length)

    def read_sidecars(self, row: Mapping[str, Any]) -> ImageFacts:
        """Metadata from the index, the sidecars, and the other columns of a Parquet row; the first counts.

        `row` is a row of index.INDEX as a dict.
        Raises ImageError: "bad_sidecar", or "unreadable" for a Parquet row; and StoreError.
        """
        files = [(sidecar["suffix"], *self._read_sidecar(sidecar, row["uri"])) for sidecar in row["sidecars"]]
        data = parse_sidecars(files)
        carried = merge(Carried(alt_text=row["alt_text"], class_label=row["class_label"]), data.carried)
        if row["row"] is not None:
            carried = merge(carried, map_columns(self._read_columns(row["uri"], row["row"])))
        return ImageFacts(
            alt_text=carried.alt_text,
            class_label=carried.class_label,
            num_masks=data.num_masks,
            mask_area_px=data.mask_area_px,
            metadata=_merge_json(row["metadata"], carried),
        )

    def _read_any(self, reference: ImageReference, max_bytes: int | None) -> bytes | None:
        if reference.member == LISTED:
            raise ImageError(
                "unreadable", f"row {reference.row} of {reference.uri} names no image in valid Unicode: fill it in or remove it"
            )
        if _is_web_file(reference):
            data = None if self._ahead is None else self._ahead.take(reference.uri)
            return self._read_file(reference.uri, max_bytes) if data is None else data
        read = partial(self._read_once, reference, max_bytes)
        return retried(read, uri=reference.uri, name=_name(reference), before_retry=self._close_one)

    def _read_once(self, reference: ImageReference, max_bytes: int | None) -> bytes | None:
        if reference.row is not None:
            return self._read_row(reference.uri, reference.row, max_bytes)
        if reference.byte_offset is not None and reference.byte_length is not None:
            if max_bytes is not None and reference.byte_length > max_bytes:
                raise _too_many_bytes(_name(reference), reference.byte_length, max_bytes)
            return self._open_tar(reference.uri).read(reference.byte_offset, reference.byte_length)
        return self._read_file(reference.uri, max_bytes)

    def _read_file(self, uri: str, max_bytes: int | None) -> bytes:
        """A whole file; one on the web is fetched within the limits of its settings."""
        if is_web(uri):
            return web_client(self._web).start(uri, max_bytes=max_bytes).result()
        return _read_file(uri, max_bytes)

    def _read_columns(self, uri: str, row: int) -> dict[str, Any]:
        """The scalar columns of a Parquet row."""

        def read() -> dict[str, Any]:
            return self._open_parquet(uri).columns(row)

        return retried(read, uri=uri, name=f"{uri}, row {row}", before_retry=self._close_one)

    def _read_row(self, uri: str, row: int, max_bytes: int | None) -> bytes | None:
        """An image in a Parquet row, or the file that the row names instead, as `datasets` writes it if told not to embed."""
        rows = self._open_parquet(uri)
        data = rows.image(row)
        if data is None and (path := rows.image_path(row)):
            return self._read_file(locate(path, parent(uri)), max_bytes)
        return data

    def _read_sidecar(self, sidecar: Mapping[str, Any], image_uri: str) -> tuple[bytes, str]:
        """The bytes of a sidecar and its name for messages; every failure is a bad sidecar."""
        reference = reference_of({**sidecar, "uri": sidecar["uri"] or image_uri})
        where = f"{reference.uri} ({sidecar['suffix']})"
        try:
            return self._read_any(reference, MAX_SIDECAR_BYTES) or b"", where
        except ImageError as error:
            raise ImageError("bad_sidecar", f"{where}: {error.message}") from error

    def _open_tar(self, uri: str) -> RangeFile:
        opened = _cached(self._tars, uri) or _keep(self._tars, uri, _open_planned(RangeFile, uri))
        if uri in self._expected:
            opened.expect(self._expected.pop(uri))
        return opened

    def _open_parquet(self, uri: str) -> ParquetRows:
        return _cached(self._parquet, uri) or _keep(self._parquet, uri, _open_planned(ParquetRows, uri))

    def _close_one(self, uri: str) -> None:
        """Closes a file whose handle may have become stale; the next read opens it again."""
        for opened in (self._tars.pop(uri, None), self._parquet.pop(uri, None)):
            if opened is not None:
                opened.close()


def _is_web_file(reference: ImageReference) -> bool:
    """Whether an image is a whole file on the web."""
    return reference.row is None and reference.byte_offset is None and is_web(reference.uri)


def coalesce(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted spans (start, end) that cover all (offset, length) pairs. Gaps up to 64 KiB are bridged, spans end at 16 MiB."""
    spans: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        start, end = spans[-1] if spans else (0, -_MAX_GAP_BYTES - 1)
        if offset - end <= _MAX_GAP_BYTES and max(end, offset + length) - start <= _MAX_SPAN_BYTES:
            spans[-1] = (start, max(end, offset + length))
        else:
            spans.append((offset, offset + length))
    return spans


def _open_planned(open_container: Callable[[str], OpenedT], uri: str) -> OpenedT:
    """Opens a container, which was there when its images were planned: one that has gone is no fault of theirs."""
    try:
        return open_container(uri)
    except FileNotFoundError:
        gone = f"{uri} existed when its images were planned, and is missing now: restore it, then run the same command again"
        raise StoreError(gone, is_alone=False, may_pass=False) from None


def _cached(cache: OrderedDict[str, OpenedT], uri: str) -> OpenedT | None:
    if uri in cache:
        cache.move_to_end(uri)
    return cache.get(uri)


def _keep(cache: OrderedDict[str, OpenedT], uri: str, opened: OpenedT) -> OpenedT:
    """Adds to the cache and closes the one that was used least recently, if there are too many."""
    cache[uri] = opened
    if len(cache) > _MAX_OPEN:
        cache.popitem(last=False)[1].close()
    return opened


def _read_file(uri: str, max_bytes: int | None) -> bytes:
    """A whole file. A local one is looked at first, since a pipe would block; a remote one is cut at the limit."""
    if is_data_url(uri):
        return data_of(uri)
    if not is_url(uri):
        status = os.stat(uri)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("unreadable", f"{uri} is not a regular file")
        if max_bytes is not None and status.st_size > max_bytes:
            raise _too_many_bytes(uri, status.st_size, max_bytes)
    file: BinaryIO
    with open_binary(uri) as file:
        size = getattr(file, "size", None)
        if max_bytes is not None and isinstance(size, int) and size > max_bytes:
            raise _too_many_bytes(uri, size, max_bytes)
        return file.read() if max_bytes is None else file.read(max_bytes + 1)


def _merge_json(indexed: str | None, carried: Carried) -> str | None:
    """Metadata of the index and of the sidecars as one JSON object; the index counts."""
    found = carried.all_metadata
    return metadata_json({**found, **json.loads(indexed)}) if indexed and found else indexed or metadata_json(found)


def _too_many_bytes(name: str, num_bytes: int, max_bytes: int) -> ImageError:
    return ImageError("too_many_bytes", f"{name} has {num_bytes:,} bytes, the limit is {max_bytes:,}")


def _name(reference: ImageReference) -> str:
    """Name for messages: the file, and the member or row in it."""
    uri = shown(reference.uri)
    if reference.row is not None:
        return f"{uri}, row {reference.row}, column {reference.member}"
    return f"{uri}, member {reference.member}" if reference.byte_offset is not None else uri
