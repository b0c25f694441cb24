"""Reader that fetches images ahead by threads, extents whole (extents.py); what is decoded waits for no store."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter
from threading import Lock
from typing import Any, TypeVar

from foundry.errors import StoreError
from foundry.hardware import keep_freed_memory
from foundry.images.ahead.extents import Extent, ExtentCache, extent_of
from foundry.images.index import ImageReference
from foundry.images.loading import ReadRows, read_rows
from foundry.images.reader import ImageReader, reference_of
from foundry.images.web.settings import WebSettings
from foundry.storage.locations import is_data_url, is_url
from foundry.units.rejection import ImageError

ReadT = TypeVar("ReadT")

LOCAL_THREADS = 4
REMOTE_THREADS = 16
"""More, since they wait for a store and not for a processor."""
_STRIDE = 97
"""Images from where one unit begins to read to where the next one does."""
_INDEX = "index"
_WEB = ("http://", "https://")
_Run = tuple[Extent | None, list[ImageReference]]
_Found = bytes | None | ImageError | StoreError


def read_ahead(
    rows: Sequence[Mapping[str, Any]],
    read: Callable[[ImageReader, Mapping[str, Any]], ReadT],
    *,
    cache: ExtentCache | None,
    max_bytes: int,
    turn: int = 0,
    web: WebSettings | None = None,
) -> ReadRows[ReadT]:
    """As loading.read_rows, in the order of the containers and ahead by threads; results are in the order of `rows`.

    `turn`: a number of this call; calls with neighbouring numbers begin at different images, so that they fetch different
    extents first. `cache`, `max_bytes` and `web`: see AheadReader.
    """
    keep_freed_memory()  # else each image's memory is new to the process, which takes four times as long as copying it
    ordered = sorted(range(len(rows)), key=lambda index: _position(rows[index]))
    start = turn * _STRIDE % max(1, len(ordered))
    turned = [{**rows[index], _INDEX: index} for index in ordered[start:] + ordered[:start]]

    def numbered(reader: ImageReader, row: Mapping[str, Any]) -> tuple[int, ReadT]:
        return row[_INDEX], read(reader, row)

    found = read_rows(turned, numbered, reader=AheadReader(cache, max_bytes=max_bytes, web=web))
    places = {row["key"]: index for index, row in enumerate(rows)}
    images = [one for _, one in sorted(found.images, key=itemgetter(0))]
    return ReadRows(images=images, rejected=sorted(found.rejected, key=lambda row: places[row["key"]]))


class AheadReader(ImageReader):
    """Reads the images that it expects, best in that order, ahead of their turn; others when they are asked for.

    Errors are those of an ImageReader, raised when the image is asked for.
    """

    def __init__(self, cache: ExtentCache | None, *, max_bytes: int, web: WebSettings | None = None) -> None:
        """`cache`: keeps extents for other workers of the node; none: each image is fetched alone. `max_bytes`: of an image.

        `web`: as in ImageReader, which fetches images on the web ahead.
        """
        super().__init__(web=web)
        self._cache = cache
        self._max_bytes = max_bytes
        self._threads: ThreadPoolExecutor | None = None
        self._num_threads = 0
        self._idle: list[ImageReader] = []
        self._lock = Lock()
        self._runs: Iterator[_Run] = iter(())
        self._pending: deque[Future[dict[ImageReference, _Found]]] = deque()
        self._fetched: dict[ImageReference, _Found] = {}

    def close(self) -> None:
        """Ends the threads, and closes all files."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
        self._threads = None
        for reader in self._idle:
            reader.close()
        super().close()

    def expect(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Says which rows will be read, and in which order."""
        super().expect([row for row in rows if row["uri"].startswith(_WEB)])
        is_remote = any(is_url(row["uri"]) for row in rows)
        self._num_threads = REMOTE_THREADS if is_remote else LOCAL_THREADS
        self._threads = self._threads or ThreadPoolExecutor(self._num_threads, thread_name_prefix="images")
        self._runs = _runs(rows, with_extents=self._cache is not None)
        self._pending.clear()
        self._fetched = {}

    def _read_any(self, reference: ImageReference, max_bytes: int | None) -> bytes | None:
        while reference not in self._fetched and self._look_ahead():
            self._fetched = self._pending.popleft().result()
        if reference not in self._fetched:  # not expected, or asked for again
            return super()._read_any(reference, max_bytes)
        found = self._fetched.pop(reference)
        if isinstance(found, ImageError | StoreError):
            raise found
        return found

    def _look_ahead(self) -> bool:
        """Gives each thread an extent or an image, no more, since images may be large; whether there is more to wait for."""
        if self._threads is None:
            return False
        while len(self._pending) < self._num_threads and (run := next(self._runs, None)) is not None:
            self._pending.append(self._threads.submit(self._fetch, *run))
        return bool(self._pending)

    def _fetch(self, extent: Extent | None, references: list[ImageReference]) -> dict[ImageReference, _Found]:
        """Images of one extent, or one that is alone; each thread takes a reader that no other uses."""
        with self._lock:
            reader = self._idle.pop() if self._idle else ImageReader()
        try:
            cached: Sequence[bytes | None] = [None] * len(references)
            if extent is not None and extent.is_kept and self._cache is not None:
                cached = self._cache.images(extent, references, reader)
            elif extent is not None:
                reader.announce(extent.uri, extent.start, extent.length)
            return {
                reference: data if data is not None else self._read_alone(reader, reference)
                for reference, data in zip(references, cached, strict=True)
            }
        finally:
            with self._lock:
                self._idle.append(reader)

    def _read_alone(self, reader: ImageReader, reference: ImageReference) -> _Found:
        try:
            return reader.read_encoded(reference, max_bytes=self._max_bytes)
        except (ImageError, StoreError) as error:
            return error


def _runs(rows: Iterable[Mapping[str, Any]], *, with_extents: bool) -> Iterator[_Run]:
    """Consecutive rows of one extent together, each other row alone; an ImageReader reads those of the web, and data URLs."""
    read_ahead = (row for row in rows if not row["uri"].startswith(_WEB) and not is_data_url(row["uri"]))
    for extent, group in groupby(read_ahead, key=extent_of if with_extents else _no_extent):
        references = [reference_of(row) for row in group]
        if extent is not None:
            yield extent, references
        else:
            yield from ((None, [reference]) for reference in references)


def _no_extent(_: Mapping[str, Any]) -> None:
    return None


def _position(row: Mapping[str, Any]) -> tuple[str, int, int]:
    return row["uri"], -1 if row["row"] is None else row["row"], -1 if row["byte_offset"] is None else row["byte_offset"]
