"""Captions that a studio shows: a run or a data set, opened once, with its index and the reviews of people.

The first page comes from the first files, at once; the index is written or opened by a thread meanwhile. Filters wait for it.
A run that grows gets a new index, which another thread makes of the old one and of what is new, when a page is opened.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dataset_builder.json_text import words_of_json
from dataset_builder.reviews.records import Reviews, read_reviews, review_files
from dataset_builder.sql.dataset_files import DatasetFiles, find_dataset
from dataset_builder.sql.run_files import RunFiles, find_run
from foundry.errors import UserError, one_line
from foundry.reporting.lines import say
from foundry.storage.folder import Folder, store_errors
from foundry.storage.locations import normalise
from studio.captions.caption_index import PAGE_ROWS, CaptionIndex
from studio.captions.index_file import SUFFIX, memory_index, open_index, pieces_of, state_digest, write_index
from studio.folders import hashed_folder

PREVIEW = "preview"
_HEAD_START_S = 2.0
"""Time for the first page and its pictures, unless something waits for the index."""
_LOOK_AGAIN_S = 5.0
"""Time between two looks whether a run has grown."""
_KEPT_VERSIONS = 3
"""Indexes of earlier states that stay open for those who look at them."""
_PREVIEW_PIECES = 4
"""Pieces that are looked through for the first page: the first ones may have few captions."""


class CaptionSource:
    """A run or a data set that is open. Raises UserError where there is neither, or no caption yet."""

    def __init__(self, url: str, *, cache: Path) -> None:
        stored = find_dataset(url) or find_run(url)
        if stored is None:
            raise UserError(
                f"{url} is neither a run nor a data set: it has no run.json and no dataset.json: "
                "give a folder that captioner.run or dataset_builder.build wrote"
            )
        self.url = url
        self.stored: RunFiles | DatasetFiles = stored
        self.pieces = pieces_of(stored)
        if not self.pieces:
            raise UserError(f"{url} has no caption yet: caption first, then open it again")
        self.problem = ""
        """Reason why there is no index; empty while it is written and when it is there."""
        self._folder = hashed_folder(cache, normalise(url))
        self._path = self._folder / f"{state_digest(self.pieces)}{SUFFIX}"
        self._progress = (0, len(self.pieces))
        self._ending = ExitStack()
        self._ready = threading.Event()
        self._versions: OrderedDict[str, tuple[CaptionIndex, ExitStack]] = OrderedDict()
        self._looked = time.monotonic()
        self._preview: CaptionIndex | None = None
        self._writer: threading.Thread | None = None
        self._wanted = threading.Event()
        self._closes = False
        self._reviews_lock = threading.Lock()
        self._run_reviews: dict[str, Reviews] = {}

    @property
    def is_dataset(self) -> bool:
        """Whether it is a data set, whose captions are edited in the runs that they come from."""
        return isinstance(self.stored, DatasetFiles)

    @property
    def title(self) -> str:
        """Name for people: the last part of the address, and the model of a run."""
        name = self.url.rstrip("/").rsplit("/", 1)[-1]
        return f"{name} (data set)" if self.is_dataset else f"{name} ({self.model})"

    @property
    def model(self) -> str:
        """Name of the model that wrote the captions; of a data set, those of its runs."""
        if isinstance(self.stored, DatasetFiles):
            models = [(run.get("model") or {}).get("name", "unknown") for run in self.stored.record["runs"]]
            return ", ".join(dict.fromkeys(models))
        return str((self.stored.settings.get("model") or {}).get("name", "unknown model"))

    @property
    def is_indexed(self) -> bool:
        """Whether the whole index is there."""
        return self._ready.is_set() and bool(self._versions)

    def start(self) -> None:
        """Opens the index, or has a thread write it first."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            self._open(self._path)
        else:
            self.first()  # before the thread takes the processor
            self._begin(self._write)

    def follow(self) -> None:
        """Has a thread look whether the run has grown, and add what is new to a new index: from then on it is the index.

        Those who look at pages of the one before keep it. Nothing happens while an index is written, or soon after a look.
        """
        is_writing = self._writer is not None and self._writer.is_alive()
        if self.is_indexed and not is_writing and time.monotonic() - self._looked >= _LOOK_AGAIN_S:
            self._looked = time.monotonic()
            self._begin(self._grow)

    def _begin(self, work: Callable[[], None]) -> None:
        self._writer = threading.Thread(target=work, name="studio-index", daemon=True)
        self._writer.start()

    def newest(self) -> RunFiles | DatasetFiles:
        """The run or the data set as it is now, with what was committed and reviewed since it was opened."""
        found = find_dataset(self.url) or find_run(self.url)
        if found is None:
            raise UserError(f"{self.url} is gone: restore it, or open another run")
        return found

    def close(self) -> None:
        """Closes the index and the preview; an index that is being written is given up after the files in hand."""
        self._closes = True
        self._wanted.set()
        if self._writer is not None:
            self._writer.join()
        for _, ending in self._versions.values():
            ending.close()
        self._ending.close()

    def first(self) -> CaptionIndex:
        """The index, or while it is written that of the first captions, whose counts are not those of the whole."""
        if self.is_indexed:
            return self.index()
        if self._preview is None:
            for number in range(1, min(_PREVIEW_PIECES, len(self.pieces)) + 1):
                connection = self._ending.enter_context(memory_index(self.stored, self.pieces[:number]))
                self._preview = CaptionIndex(connection, name=PREVIEW)
                self._mark(self._preview)
                if len(self._preview.page_numbers()) >= PAGE_ROWS:
                    break
        assert self._preview is not None
        return self._preview

    def first_rows(self, numbers: list[int]) -> list[dict[str, Any]]:
        """Rows of the preview."""
        return self._preview.rows(numbers) if self._preview else []

    def version(self, name: str) -> CaptionIndex | None:
        """The index of this name, which says which state of the captions its numbers are of."""
        if name == PREVIEW:
            return self._preview
        found = self._versions.get(name)
        return found[0] if found else None

    def index(self, *, wait_s: float = 600.0, on_wait: Callable[[str], None] = lambda _: None) -> CaptionIndex:
        """The whole index, when it is there. `on_wait` hears how far it is. Raises UserError if it cannot be written."""
        self._wanted.set()
        until = time.monotonic() + wait_s
        while not self._ready.wait(0.2):
            on_wait(self.progress)
            if time.monotonic() > until:
                raise UserError(f"the index of {self.url} is not ready after {wait_s:.0f} s ({self.progress}): try again later")
        if not self._versions:
            raise UserError(self.problem)
        return self._versions[self._path.stem][0]

    @property
    def progress(self) -> str:
        """How far the index is."""
        done, planned = self._progress
        return f"reading captions: {done:,} of {planned:,} files"

    def reviews(self, run: str = "") -> Reviews:
        """The reviews of a run, by its name in a data set."""
        return self._run_reviews.get(run, Reviews())

    def review_folder(self, run: str = "") -> Folder:
        """The folder of the run that a caption is edited in. Raises UserError if a data set's run is not there any more."""
        if isinstance(self.stored, RunFiles):
            return self.stored.folder
        urls = {one["name"]: one["url"] for one in self.stored.record["runs"]}
        folder = Folder(urls[run])
        if find_run(folder.url) is None:
            raise UserError(f"{folder.url}, the run of this caption, is gone: an edit is saved there, so restore it first")
        return folder

    def refresh_reviews(self) -> None:
        """Reads the edits and flags of people again where there are others than before."""
        names = [one["name"] for one in self.stored.record["runs"]] if isinstance(self.stored, DatasetFiles) else [""]
        with self._reviews_lock:
            changed = False
            for name in names:
                folder = self._folder_of(name)
                with store_errors(folder):
                    if name not in self._run_reviews or self._run_reviews[name].files != review_files(folder):
                        self._run_reviews[name] = read_reviews(folder)
                        changed = True
            indexes = [index for index, _ in list(self._versions.values())] + ([self._preview] if self._preview else [])
            for index in indexes if changed else ():
                self._mark(index)

    def words(self, row: dict[str, Any]) -> str:
        """The caption of a row with all that is no word blanked out, which is what its nouns were counted in."""
        text = row["edited"] or row["caption"]
        return words_of_json(text) if row["prompt"] in self.structured else str(text)

    @property
    def structured(self) -> list[str]:
        """The prompts whose captions are JSON."""
        return self.stored.structured if isinstance(self.stored, DatasetFiles) else self.stored.record.structured_prompts

    def _folder_of(self, name: str) -> Folder:
        if isinstance(self.stored, RunFiles):
            return self.stored.folder
        return Folder(next(one["url"] for one in self.stored.record["runs"] if one["name"] == name))

    def _mark(self, index: CaptionIndex) -> None:
        edits: dict[tuple[str, str, str], dict[str, Any]] = {}
        flags: dict[tuple[str, str, str], str] = {}
        for name, reviews in self._run_reviews.items():
            edits |= {(name, *of): row for of, row in reviews.current_edits().items()}
            flags |= {(name, *of): flag for of, flag in reviews.current_flags().items()}
        index.set_reviews(edits, flags)

    def _write(self) -> None:
        self._wanted.wait(_HEAD_START_S)
        try:
            write_index(self._path, self.stored, self.pieces, on_progress=self._on_progress)
            self._open(self._path)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait for the index are told
            self.problem = (
                f"the index of {self.url} cannot be written ({one_line(error)}): check the files and the cache folder"
            )
            self._ready.set()

    def _grow(self) -> None:
        try:
            stored = self.newest()
            pieces = pieces_of(stored)
            path = self._folder / f"{state_digest(pieces)}{SUFFIX}"
            if path != self._path and pieces:
                write_index(path, stored, pieces, on_progress=self._on_progress)
                self.stored, self.pieces = stored, pieces
                self._open(path)
        except Exception as error:  # noqa: BLE001 - the captions that are there stay
            if not self._closes:
                say(f"warning: what is new in {self.url} cannot be read ({one_line(error)}): earlier captions are shown")

    def _open(self, path: Path) -> None:
        path.touch()  # the newest index of a cache is kept longest
        ending = ExitStack()
        index = CaptionIndex(ending.enter_context(open_index(path)), name=path.stem)
        with self._reviews_lock:
            self._mark(index)
            self._versions[path.stem] = (index, ending)
            self._path = path
            if len(self._versions) > 1 + _KEPT_VERSIONS:
                self._versions.popitem(last=False)[1][1].close()
        self._ready.set()

    def _on_progress(self, done: int, planned: int) -> None:
        self._progress = (done, planned)
        if self._closes:
            raise InterruptedError("the studio was closed")


@contextmanager
def open_sources(urls: list[str], *, cache: Path) -> Iterator[list[CaptionSource]]:
    """Opens runs and data sets; their indexes are written meanwhile. Raises UserError as CaptionSource does."""
    with ExitStack() as stack:
        sources = []
        for url in urls:
            source = CaptionSource(url, cache=cache)
            stack.callback(source.close)
            source.refresh_reviews()
            source.start()
            sources.append(source)
        yield sources
