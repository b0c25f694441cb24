"""The folder of a run: its settings, starts, log, metrics, samples and checkpoints; and its graceful shutdown.

config.yaml     all settings, as they were resolved at the last start
starts.jsonl    a line for each start: time, command and its working directory, versions, device, where from
log.txt         the lines that the training prints
metrics.jsonl   a line for each interval, validation and spike: trainer.tensorboard shows it
losses/         losses of samples, where they are recorded: the view `losses` of dataset_builder.query
skip.parquet, weights.parquet   the answers of the SQL of --data.skip and --data.weights, asked once
not_finite.txt  keys of samples whose loss was not finite, for --data.skip
samples/        grids of samples
checkpoints/    see trainer/training/checkpoints.py
.lock           held by the training that writes here
trackers/       what trackers of --watch.tracker have already: trainer/monitoring/tracking/rows.py
STOP            create this file to have the training save a checkpoint and end
"""

import fcntl
import json
import os
import platform
import re
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, get_args

import torch
import yaml

from foundry.errors import UserError
from foundry.hardware import Dtype, cpu_name
from foundry.reporting.lines import OUTPUT, report, say
from foundry.reporting.progress import Bar, shows_bars
from foundry.storage.folder import Folder, new_file, store_errors
from foundry.storage.json_lines import AppendedLines, read_rows
from trainer.config.train import CONFIG_FILE, LOCK_FILE, STARTS_FILE, STOP_FILE, TrainConfig
from trainer.data.passes import TrainingWarning
from trainer.data.skip_list import read_skip_list, write_skip_list
from trainer.distributed import Workers
from trainer.monitoring.losses import remove_losses
from trainer.monitoring.tracking import rows

METRICS = rows.METRICS
CHECKPOINTS = "checkpoints"
CONFIG = CONFIG_FILE
LOG = "log.txt"
NOT_FINITE = "not_finite.txt"
STOP = STOP_FILE
ROW_LINE = re.compile(r"\d+ px  step \d|\d+ images: validation loss|a spike at step")
"""How lines of the log begin that say a row of METRICS."""
_FOLLOW_S = 0.5
_LIBRARIES = ("torch", "ray", "diffusers", "transformers", "pyarrow", "numpy", "safetensors")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class RunFolder:
    """Only the first worker writes; the others' calls do nothing. What cannot be written is a UserError."""

    def __init__(self, path: Path, workers: Workers) -> None:
        self.path = path
        self._writes = workers.is_first

    def writing(self) -> AbstractContextManager[None]:
        """Turns errors of the disk, inside, into a UserError of one line."""
        return store_errors(Folder(str(self.path)))

    @contextmanager
    def held(self, *, wait_s: float) -> Iterator[None]:
        """Holds the folder's lock, for one training on this machine at a time.

        Raises UserError if another training still has it after `wait_s`: workers that outlive their driver need some seconds
        to end.
        """
        if not self._writes:
            yield
            return
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / LOCK_FILE).open("w")
        with lock as file:
            until = time.monotonic() + wait_s
            while not _locked(file.fileno()):
                if time.monotonic() > until:
                    raise UserError(
                        f"another training writes to {self.path}: wait for it to end, or give another folder", setting="run_dir"
                    )
                time.sleep(_FOLLOW_S)
            yield

    def start(self, config: TrainConfig, workers: Workers, *, origin: str, images_seen: int) -> None:
        """Records a start before its first step; rows of metrics after `images_seen` are dropped, to be measured again."""
        if not self._writes:
            return
        record = {
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "origin": origin,
            "images_seen": images_seen,
            "argv": sys.argv,
            "directory": os.getcwd(),
            "num_workers": workers.num,
            "device": _device_name(workers.device),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        }
        kept = [row for row in read_metrics(self.path) if row["images_seen"] <= images_seen]
        with self.writing():
            remove_losses(self.path, after=images_seen)
            (self.path / STOP).unlink(missing_ok=True)
            _replace(self.path / CONFIG, yaml.safe_dump(_plain(asdict(config)), sort_keys=False))
            _replace(self.path / METRICS, "".join(json.dumps(row) + "\n" for row in kept))
        self._append(STARTS_FILE, json.dumps(record))

    def add_metrics(self, row: Mapping[str, Any], line: str = "") -> None:
        """Appends a row, and says its line for people, which begins as one of ROW_LINE; in JSON the row is an event instead."""
        if not self._writes:
            return
        report(row["kind"], **row)
        self._append(METRICS, json.dumps(row))
        if line:
            assert ROW_LINE.match(line), line
            _say_for_people(line)
            self._append(LOG, line)

    def say(self, line: str) -> None:
        """Prints a line, once for all workers, and keeps it in log.txt."""
        if self._writes:
            say(line)
            self._append(LOG, line)

    def warn_once(self, warning: TrainingWarning | None) -> None:
        """Says a warning, unless this run's log has one of the same fact from an earlier start."""
        if warning is None or not self._writes:
            return
        start = f"warning: {warning.fact}: "
        log = self.path / LOG
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        if not any(line.startswith(start) for line in lines):
            self.say(start + warning.advice)

    def add_not_finite(self, keys: Collection[str], *, skipped: str | None) -> None:
        """Adds keys to not_finite.txt, and those of the list `skipped`, so that the file replaces that list."""
        if not self._writes:
            return
        path = self.path / NOT_FINITE
        before = read_skip_list(str(path)) if path.exists() else frozenset()
        with self.writing():
            write_skip_list(path, {*before, *read_skip_list(skipped), *keys})

    def asked_to_stop(self) -> bool:
        """True where somebody made the file STOP."""
        return (self.path / STOP).exists()

    def _append(self, name: str, line: str) -> None:
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def _say_for_people(line: str) -> None:
    """Says a line of a log, unless a row that is reported in JSON has the same facts."""
    if OUTPUT.format != "json" or not ROW_LINE.match(line):
        say(line)


@contextmanager
def printed_log(run: Path, *, stage: str = "", images: int | None = None) -> Iterator[None]:
    """While this is open, says what workers in other processes add to a run's log.txt, and reports their metrics.

    On a terminal a bar shows how far the `stage` of this many `images` is.
    """
    bar = Bar(stage, total=images, shown=bool(stage) and shows_bars())
    log, metrics, ends = AppendedLines(run / LOG), AppendedLines(run / METRICS), threading.Event()

    def follow() -> None:
        last = False
        while not last:
            last = ends.wait(_FOLLOW_S)
            for line in log.lines():
                _say_for_people(line)
            for row in map(json.loads, metrics.lines()):
                report(row["kind"], **row)
                if row["kind"] == "train":
                    _move(bar, row["images_seen"])

    thread = threading.Thread(target=follow, name="log", daemon=True)
    with bar:
        thread.start()
        try:
            yield
        finally:
            ends.set()
            thread.join()


def _move(bar: Bar, images_seen: int) -> None:
    """Moves a bar to where a training is: its first row says where it began, and a worker that is lost takes it back."""
    if not bar.counted.reached:
        bar.counted.before = images_seen
    bar.advance(images_seen - bar.counted.reached)


def recorded_precision(run: Path) -> Dtype | None:
    """The number format of the run's last start; None if config.yaml is missing or lacks it."""
    try:
        settings = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return None
    found = settings.get("precision") if isinstance(settings, dict) else None
    return found if found in get_args(Dtype) else None


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All whole rows of metrics.jsonl; a last line that a kill cut off is ignored."""
    return read_rows(run / METRICS)


def list_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, the oldest first; training/checkpoints.py writes them."""
    folder = run / CHECKPOINTS
    return sorted(path for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the most images seen."""
    found = list_checkpoints(run)
    return found[-1] if found else None


class StopSignals:
    """Receives SIGTERM and Ctrl-C while it is open. A second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.received = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Ray's workers train in another, and get no signals
            self._before = {kind: signal.signal(kind, self._receive) for kind in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for received, handler in self._before.items():
            signal.signal(received, handler)

    def _receive(self, received: int, _frame: FrameType | None) -> None:
        if self.received and received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True


class StopSignal(StopSignals):
    """The request to stop, which a worker checks after each step."""

    def __init__(self, run: RunFolder, workers: Workers) -> None:
        super().__init__()
        self._run = run
        self._workers = workers

    def stops(self, *, look: bool) -> bool:
        """Whether to stop after this step. One process knows at once; several ask each other, and look for STOP, if `look`."""
        if look:
            return self._workers.any(self.received or (self._workers.is_first and self._run.asked_to_stop()))
        return self.received and self._workers.num == 1


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _replace(path: Path, text: str) -> None:
    with new_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    """Tuples as lists, which YAML has."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({cpu_name()}, {os.cpu_count()} cores)"
