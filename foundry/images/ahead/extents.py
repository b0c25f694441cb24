"""Extents: contiguous parts of containers (a row group of Parquet, a byte range of a tar), each fetched once on a node.

Units of features draw their images from many extents, and each extent has images of many units. The first worker of a node that
needs one fetches all of it into a folder on the node's disk, and the others read it there. The cache changes no result: what it
does not hold is read from the container itself.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from foundry.errors import StoreError
from foundry.images.index import ImageReference
from foundry.images.reader import ImageReader
from foundry.storage.locations import is_url
from foundry.units.rejection import ImageError

_PREFIX = "t2i-extents-"
_ABANDONED_S = 86_400.0
_LEAST_FREE = 0.5
"""Share of the free disk space that the cache leaves to others."""


class Extent(NamedTuple):
    """A contiguous part of a container: rows of a Parquet file (one row group), or bytes of a tar."""

    uri: str
    start: int
    length: int
    is_rows: bool

    @property
    def is_kept(self) -> bool:
        """Whether a cache keeps it; bytes of a local file are kept by the operating system."""
        return self.is_rows or is_url(self.uri)


def extent_of(row: Mapping[str, Any]) -> Extent | None:
    """The extent in a row of a plan; None if its image is read alone."""
    if row.get("extent_length") is None:
        return None
    return Extent(row["uri"], row["extent_start"], row["extent_length"], row["row"] is not None)


@dataclass(frozen=True, kw_only=True)
class ExtentCache:
    """A folder of extents on a node's disk, shared by the workers of one run; those least recently used make room."""

    name: str
    """Name of the run, which no other has."""
    max_bytes: int
    """Bytes of disk on each node, at most; at most half of what is free."""
    parent: str = ""
    """Folder on each node's disk that holds the cache; empty: the system's folder for temporary files there."""

    @property
    def folder(self) -> Path:
        """The folder of the extents."""
        return Path(self.parent or tempfile.gettempdir(), _PREFIX + self.name)

    def images(self, extent: Extent, references: Sequence[ImageReference], reader: ImageReader) -> list[bytes | None]:
        """The encoded images at these references, which are in the extent; None for one to be read from the container."""
        path = self.folder / hashlib.sha256(repr(extent).encode()).hexdigest()[:32]
        try:
            with self._opened(extent, path, reader) as file:
                read = _rows_of if extent.is_rows else _ranges_of
                return read(file, extent, references)
        except (OSError, ValueError, pa.ArrowException, ImageError, StoreError):
            # A damaged container, a store that fails, a full disk: each image is read alone, which tells what is wrong with it.
            return [None] * len(references)

    def remove(self) -> None:
        """Deletes the extents of this node."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _opened(self, extent: Extent, path: Path, reader: ImageReader) -> Iterator[int]:
        """The file of an extent, fetched unless it is there; OSError if others needed its space at once."""
        if not path.exists():
            self._fetch(extent, path, reader)
        os.utime(path)
        with open(path, "rb", buffering=0) as file:
            yield file.fileno()

    def _fetch(self, extent: Extent, path: Path, reader: ImageReader) -> None:
        """Writes the extent, by one worker of the node; the others wait for it."""
        self._make_folder()
        with open(f"{path}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                return
            partial = path.with_suffix(".partial")
            try:
                if extent.is_rows:
                    _write_rows(partial, reader.row_group_images(extent.uri, extent.start), num_rows=extent.length)
                else:
                    partial.write_bytes(reader.read_range(extent.uri, extent.start, extent.length))
                self._make_room(partial.stat().st_size)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)

    def _make_folder(self) -> None:
        if self.folder.exists():
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for other in self.folder.parent.glob(f"{_PREFIX}*"):  # of runs that were killed
            with suppress(OSError):
                if time.time() - other.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(other, ignore_errors=True)

    def _make_room(self, num_bytes: int) -> None:
        """Deletes the extents that were used least recently; those that are being read stay readable."""
        found = []
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):  # deleted by another worker meanwhile
                found.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
        kept = sum(size for _, size, path in found if not path.endswith(".partial"))
        most = min(self.max_bytes, kept + int(shutil.disk_usage(self.folder).free * _LEAST_FREE))
        for _, size, path in sorted(found):
            if kept + num_bytes <= most:
                return
            if "." not in os.path.basename(path):
                Path(path).unlink(missing_ok=True)
                kept -= size


def _write_rows(path: Path, batches: Iterator[pa.Array], *, num_rows: int) -> None:
    """Images of a row group one after the other, then their sizes as int64, -1 for a null.

    Raises ValueError where the row group does not have the rows that were planned.
    """
    with open(path, "wb", buffering=0) as file:
        values = (value for batch in batches for value in batch)
        sizes = [file.write(value.as_buffer()) if value.is_valid else -1 for value in values]
        if len(sizes) != num_rows:
            raise ValueError(f"expected {num_rows} rows, found {len(sizes)}")
        file.write(np.array(sizes, np.int64).tobytes())


def _rows_of(file: int, extent: Extent, references: Sequence[ImageReference]) -> list[bytes | None]:
    footer = extent.length * 8
    sizes = np.frombuffer(os.pread(file, footer, os.fstat(file).st_size - footer), np.int64)
    starts = np.cumsum(sizes.clip(min=0)) - sizes.clip(min=0)
    rows = [reference.row - extent.start for reference in references if reference.row is not None]
    return [None if sizes[row] < 0 else os.pread(file, int(sizes[row]), int(starts[row])) for row in rows]


def _ranges_of(file: int, extent: Extent, references: Sequence[ImageReference]) -> list[bytes | None]:
    ranges = [(reference.byte_offset, reference.byte_length) for reference in references]
    return [
        os.pread(file, length, start - extent.start) for start, length in ranges if start is not None and length is not None
    ]
