"""Pictures of a gallery: JPEGs made on demand from the references of an index, by the code that reads all references.

A picture is asked for by the number of its row, never by a path: nothing but the images of the opened runs can be read.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from dataset_builder.reports.thumbnails import image_data, thumbnail_jpeg
from dataset_builder.sql.dataset_files import DatasetFiles
from foundry.errors import StoreError, UserError
from foundry.images.reader import ImageReader
from foundry.units.rejection import ImageError
from studio.captions.source import CaptionSource
from studio.html import notice_svg

Size = Literal["small", "large"]
SIDES_PX: dict[Size, int] = {"small": 220, "large": 512}
_CACHE_BYTES = 96 << 20
_IDLE_READERS = 4


@dataclass(frozen=True)
class Picture:
    """An encoded image and its media type; a notice in place of one that cannot be read."""

    data: bytes
    media_type: str = "image/jpeg"
    problem: str = ""


class Pictures:
    """Reads pictures of sources and keeps those that were asked for last, up to a number of bytes. For several threads."""

    def __init__(self, sources: Sequence[CaptionSource], *, cache_bytes: int = _CACHE_BYTES) -> None:
        self._sources = sources
        self._cache_bytes = cache_bytes
        self._cached: OrderedDict[tuple[int, str, int, Size], Picture] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()
        self._readers: list[ImageReader] = []

    @property
    def num_bytes(self) -> int:
        """Size of the pictures that are kept."""
        return self._num_bytes

    def get(self, source: int, version: str, number: int, size: Size) -> Picture | None:
        """The picture of a row of a version of a source's index; None if there is no such row."""
        asked = (source, version, number, size)
        with self._lock:
            if asked in self._cached:
                self._cached.move_to_end(asked)
                return self._cached[asked]
        if not 0 <= source < len(self._sources):
            return None
        index = self._sources[source].version(version)
        rows = index.rows([number]) if index else []
        if not rows:
            return None
        picture = self._read(self._sources[source], rows[0], size)
        if not picture.problem:
            self._keep(asked, picture)
        return picture

    def _read(self, source: CaptionSource, row: dict[str, Any], size: Size) -> Picture:
        try:
            if row["uri"] is None and isinstance(source.stored, DatasetFiles):
                row = {**row, "data": _embedded(source, row)}
            with self._reader() as reader:
                return Picture(thumbnail_jpeg(image_data(reader, row), side_px=SIDES_PX[size]))
        except ImageError as error:
            problem = error.message
        except (StoreError, UserError) as error:
            problem = str(error)
        return Picture(notice_svg(problem), "image/svg+xml", problem)

    @contextmanager
    def _reader(self) -> Iterator[ImageReader]:
        """A reader that no other thread uses, with the files open that it read before."""
        with self._lock:
            reader = self._readers.pop() if self._readers else ImageReader()
        try:
            yield reader
        finally:
            with self._lock:
                is_kept = len(self._readers) < _IDLE_READERS
                if is_kept:
                    self._readers.append(reader)
            if not is_kept:
                reader.close()

    def _keep(self, asked: tuple[int, str, int, Size], picture: Picture) -> None:
        with self._lock:
            if asked in self._cached or len(picture.data) > self._cache_bytes:
                return
            self._cached[asked] = picture
            self._num_bytes += len(picture.data)
            while self._num_bytes > self._cache_bytes:
                self._num_bytes -= len(self._cached.popitem(last=False)[1].data)


def _embedded(source: CaptionSource, row: dict[str, Any]) -> bytes:
    """The bytes of an image that a data set holds itself. Raises ImageError if its samples have none."""
    import pyarrow.parquet as pq

    path = next(piece.captions for piece in source.pieces if piece.number == row["piece"])
    with source.stored.folder.open(path) as file:
        found = pq.read_table(file, columns=["image"], filters=[("key", "=", row["key"])], use_threads=False).to_pylist()
    data = (found[0]["image"] or {}).get("bytes") if found else None
    if not data:
        raise ImageError("unreadable", f"{path} holds neither an image nor a reference for {row['key']}")
    return bytes(data)
