"""Rows for trackers: what metrics.jsonl and samples/ of a run hold, and the record of what a tracker has already.

RUN/trackers/NAME.json   the id of the tracked run, under which a resumed training continues
RUN/trackers/NAME.sent   a line for each row that was handed to the tracker, in order
RUN/trackers/NAME.lock   held by the process that sends
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from foundry.storage.folder import Folder
from foundry.storage.json_lines import AppendedLines, open_rows

METRICS = "metrics.jsonl"
FOLDER = "trackers"
SAMPLES = "samples"
_SCALARS = (
    *("loss", "gradient_norm", "lr", "images_per_s", "overall_images_per_s", "data_wait", "read_bytes", "mfu"),
    *("memory_bytes", "eta_s"),
    "usual_loss",
)


@dataclass(frozen=True, kw_only=True)
class TrackedRow:
    """A row of metrics, or a grid of samples."""

    kind: str
    """train, validation, spike or samples."""
    images_seen: int
    """Images of the stage that were seen: the horizontal axis."""
    scalars: dict[str, float] = field(default_factory=dict)
    """Values by name: `train/loss`."""
    text: str = ""
    """Keys of the samples of a spike."""
    image: Path | None = None
    """File of a grid."""

    @property
    def key(self) -> str:
        """Name of the row in its run: a training that resumes measures the same ones again."""
        return f"{self.kind} {self.images_seen}"


class RunRows:
    """The rows of a run, in the order in which they came; each is given once."""

    def __init__(self, run: Path) -> None:
        self._lines = AppendedLines(run / METRICS, from_start=True)
        self._samples = run / SAMPLES
        self._seen: set[str] = set()

    def new(self) -> list[TrackedRow]:
        """What came since the last call."""
        rows = [row_of(json.loads(line)) for line in self._lines.lines()]
        for path in sorted(self._samples.glob("*.png")):
            if path.stem.isdigit() and path.name not in self._seen:  # others are written still
                self._seen.add(path.name)
                rows.append(TrackedRow(kind=SAMPLES, images_seen=int(path.stem), image=path))
        return rows


class Tracker(Protocol):
    """A client of a tracker, open on one run."""

    where: str
    """What a person looks for: a URL, or a run and its place."""

    def held(self, sent: int) -> int:
        """How many of the `sent` rows the tracker has; fewer where a kill lost some on their way."""
        ...

    def log(self, row: TrackedRow, index: int) -> None:
        """Sends a row, the one of this number. Raises what the client raises."""
        ...

    def finish(self) -> None:
        """Waits until all is stored, and closes the client."""
        ...


class TrackerState:
    """The files of one tracker in a run's folder."""

    def __init__(self, run: Path, name: str) -> None:
        self.folder = run / FOLDER
        self._name = name
        self._sent = self.folder / f"{name}.sent"

    @property
    def facts(self) -> dict[str, Any]:
        """What the tracker's client has kept; empty at first."""
        path = self.folder / f"{self._name}.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return found

    def keep(self, **facts: Any) -> None:
        """Keeps facts for the next start, besides those that are kept already."""
        Folder(str(self.folder)).write(f"{self._name}.json", json.dumps(self.facts | facts).encode())

    def sent(self) -> list[str]:
        """Keys of the rows that were handed to the tracker, in order."""
        return [row["key"] for row in open_rows(self._sent)]

    def shorten(self, keys: list[str]) -> None:
        """Replaces the record by these keys."""
        text = "".join(json.dumps({"key": key}) + "\n" for key in keys)
        Folder(str(self.folder)).write(self._sent.name, text.encode())

    def add(self, key: str) -> None:
        """Adds a key. It comes before the row itself: after a kill, the tracker is asked how many it has."""
        with self._sent.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key}) + "\n")

    @contextmanager
    def held(self, *, wait: bool) -> Iterator[bool]:
        """Holds the lock; false where another process has it and `wait` is false."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{self._name}.lock").open("w") as file:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True


def row_of(row: dict[str, Any]) -> TrackedRow:
    """A row of metrics.jsonl for a tracker; values that are missing or not known are left out."""
    values = {name: row.get(name) for name in _SCALARS}
    values |= {f"loss_of_{name}": loss for name, loss in row.get("technique_losses", {}).items()}
    values |= {f"loss_of_band_{index}": loss for index, loss in enumerate(row.get("bands", ()))}
    kind, text = row["kind"], ", ".join(row.get("keys", ()))
    scalars = {f"{kind}/{name}": float(value) for name, value in values.items() if value is not None}
    return TrackedRow(kind=kind, images_seen=row["images_seen"], scalars=scalars, text=text)
