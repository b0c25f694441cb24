"""Trainings in their folders: metrics, state, sample grids, the request to stop, the command that resumes. Needs no torch."""

import json
import math
import shlex
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from foundry.errors import UserError, one_line
from foundry.storage.folder import Folder, store_errors
from foundry.storage.json_lines import read_rows
from foundry.wording import duration
from trainer.config.ladder import Rung
from trainer.config.train import CONFIG_FILE, LOCK_FILE, STARTS_FILE, STOP_FILE
from trainer.monitoring.tracking.rows import METRICS, SAMPLES

CURVE_POINTS = 80
TRAIN_CURVES = {
    "loss": "Training loss",
    "images_per_s": "Images per second",
    "overall_images_per_s": "Images per second overall: with validation, samples and checkpoints",
    "data_wait": "Time spent waiting for data, %",
    "mfu": "Model FLOPs utilisation of the GPU, %",
    "memory_bytes": "Peak memory, bytes",
    "gradient_norm": "Gradient norm",
    "lr": "Learning rate",
}
_SHARES = ("data_wait", "mfu")
_TIMESTEPS = 1000
_PROGRAMS = ("fit.py", "t2i", "__main__.py")
"""Names of the programs whose arguments are those of trainer.fit."""
_LOCKS = Path("/proc/locks")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A figure of one training by the images that its stage has seen."""

    training: str
    points: list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid of samples, and the prompts in it."""

    images_seen: int
    path: Path
    texts: tuple[str, ...]
    problem: str = ""
    """Reason why the file cannot be shown; empty where it can."""


def training_names(folders: Sequence[Path]) -> dict[str, Path]:
    """Short names that tell trainings apart: the ends of their paths."""
    names: dict[str, Path] = {}
    for folder in folders:
        parts = folder.absolute().parts
        choices = ["/".join(parts[-number:]) for number in range(1, len(parts) + 1)]
        taken = [other.absolute().parts for other in folders if other != folder]
        name = next(
            (choice for number, choice in enumerate(choices, 1) if all(other[-number:] != parts[-number:] for other in taken)),
            str(folder),
        )
        names[name] = folder
    return names


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All whole rows of a training's metrics, read again where the file has changed.

    Raises UserError if it cannot be read, and for a line that is no row of metrics.
    """
    path = folder / METRICS
    with store_errors(Folder(str(folder))):
        status = path.stat()
        return _read(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=16)
def _read(path: Path, _changed_ns: int, _num_bytes: int) -> list[dict[str, Any]]:
    try:
        rows = read_rows(path)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): restore it or remove the damaged line") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("kind"), str) or not is_number(row.get("images_seen")):
            raise UserError(
                f"{path}, line {number}: expected an object with kind and images_seen, found {json.dumps(row)[:60]}: "
                "restore the file or remove this line"
            )
    return rows


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a row is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def curves(trainings: Mapping[str, Path]) -> dict[str, list[Curve]]:
    """The curves of several trainings by what they show: those of TRAIN_CURVES, the validation loss and its bands."""
    charts: dict[str, list[Curve]] = {}
    for name, folder in trainings.items():
        rows = read_metrics(folder)
        train: list[dict[str, Any]] = [row for row in rows if row["kind"] == "train"]
        validation: list[dict[str, Any]] = [row for row in rows if row["kind"] == "validation"]
        found = {
            title: [(row["images_seen"], _shown(figure, row.get(figure))) for row in train]
            for figure, title in TRAIN_CURVES.items()
        }
        found["Validation loss"] = [(row["images_seen"], row.get("loss")) for row in validation]
        for number, title in enumerate(_bands(validation)):
            found[title] = [(row["images_seen"], next(iter(row.get("bands", ())[number:]), None)) for row in validation]
        for title, points in found.items():
            drawn = thinned([(x, y) for x, y in points if is_number(y)])
            if drawn:
                charts.setdefault(title, []).append(Curve(training=name, points=drawn))
    return dict(sorted(charts.items(), key=lambda chart: (chart[0] != TRAIN_CURVES["loss"], "loss" not in chart[0])))


def thinned(points: Sequence[tuple[float, float]], *, most: int = CURVE_POINTS) -> list[tuple[float, float]]:
    """At most so many points: means of equally many neighbours."""
    size = -(-len(points) // most) or 1
    parts = (points[start : start + size] for start in range(0, len(points), size))
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def is_running(folder: Path) -> bool:
    """Whether a process of this machine trains here: it holds the folder's lock. The lock itself is not touched."""
    try:
        number = (folder / LOCK_FILE).stat().st_ino
        locks = _LOCKS.read_text(encoding="ascii")
    except OSError:
        return False  # never started, or a machine without this list
    return any(" FLOCK " in line and f":{number} " in line for line in locks.splitlines())


def is_finished(folder: Path) -> bool:
    """Whether the training has seen all images of its ladder. Raises UserError for metrics that cannot be read."""
    try:
        ladder = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))["ladder"]
        planned = sum(Rung(**rung).images_seen for rung in ladder)
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return False  # settings of another version, or none: nobody knows
    return bool(ladder) and max((row["images_seen"] for row in read_metrics(folder)), default=0) >= planned


def status_row(name: str, folder: Path, *, now: float | None = None) -> dict[str, Any]:
    """The newest figures of a training, and whether it runs."""
    rows = read_metrics(folder)
    train: dict[str, Any] = next((row for row in reversed(rows) if row["kind"] == "train"), {})
    validation: dict[str, Any] = next((row for row in reversed(rows) if row["kind"] == "validation"), {})
    idle_s = (time.time() if now is None else now) - (folder / METRICS).stat().st_mtime
    if is_running(folder):
        state = "runs on this machine"
    elif is_finished(folder):
        state = "finished"
    else:
        state = f"does not run on this machine; wrote last {duration(max(idle_s, 0))} ago"
    if state != "finished" and (folder / STOP_FILE).exists():
        state += "; asked to stop"
    return {
        "training": name,
        "state": state,
        "images seen": train.get("images_seen"),
        "px": train.get("resolution"),
        "loss": train.get("loss"),
        "validation loss": validation.get("loss"),
        "images/s": train.get("images_per_s"),
        "data wait": _percent(train.get("data_wait")),
        "MFU": _percent(train.get("mfu")),
        "memory": f"{train['memory_bytes'] / 1e9:.1f} GB" if train.get("memory_bytes") else None,
        "left": duration(train["eta_s"]) if train.get("eta_s") is not None else None,
    }


def stop(folder: Path) -> str:
    """Asks a training to save a checkpoint and end, wherever it runs, and returns a line about it.

    Raises UserError for a training that has finished, and for a folder that is none.
    """
    if not (folder / METRICS).exists():
        raise UserError(f"{folder} is no training: it has no {METRICS}")
    is_here = is_running(folder)
    if not is_here and is_finished(folder):
        raise UserError("this training has finished: there is nothing to stop")
    with store_errors(Folder(str(folder))):
        Folder(str(folder)).write(STOP_FILE, b"asked for in the studio\n")
    if is_here:
        then = "the training saves a checkpoint after its present step and ends; start it again to resume"
    else:
        then = (
            "no process of this machine trains here; one of another machine saves a checkpoint and ends when it sees the file"
        )
    return f"made {folder / STOP_FILE}: {then}"


def resume_command(folder: Path) -> str:
    """The command of the training's last start, for its stage alone: the same command resumes it.

    Raises UserError where none is recorded, and where the training was not started by this command but by Ray or from Python.
    """
    try:
        starts = read_rows(folder / STARTS_FILE)
        program, *arguments = map(str, starts[-1]["argv"])
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{folder / STARTS_FILE} has no start, so the command is unknown: train with trainer.fit") from None
    if Path(program).name not in _PROGRAMS:
        raise UserError(
            f"this training was started by {Path(program).name}, not by trainer.fit on one worker: run what you typed again; "
            f"its settings are in {folder / CONFIG_FILE}"
        )
    command = shlex.join(["python", "-m", "trainer.fit", *_of_stage(arguments, folder.absolute().name)])
    directory = starts[-1].get("directory")  # starts of earlier versions have none
    return f"cd {shlex.quote(str(directory))} && {command}" if directory else command


def _of_stage(arguments: Sequence[str], stage: str) -> list[str]:
    """The arguments with this stage in place of another, such as all."""
    kept = [
        argument
        for before, argument in zip(["", *arguments], arguments, strict=False)
        if "--stage" not in (before, argument.partition("=")[0])
    ]
    return ["--stage", stage, *kept]


def grids(folder: Path) -> list[Grid]:
    """The sample grids of a training, the earliest first."""
    paths = sorted(path for path in (folder / SAMPLES).glob("*.png") if path.stem.isdigit())
    return [_grid(path, path.stat().st_mtime_ns) for path in paths]


@lru_cache(maxsize=256)
def _grid(path: Path, _changed_ns: int) -> Grid:
    """A grid with the prompts that its PNG records, if any."""
    from PIL import Image

    problem = ""
    texts: tuple[str, ...] = ()
    try:
        with Image.open(path) as image:
            image.load()
            said = getattr(image, "text", {}).get("texts", "[]")
        texts = tuple(map(str, json.loads(said)))
    except (OSError, SyntaxError, struct.error) as error:  # SyntaxError is Pillow's for a damaged PNG
        problem = f"{path} cannot be read as an image ({one_line(error)}): remove it or restore it"
    except (ValueError, TypeError):
        pass  # another program's text: the image is shown without prompts
    return Grid(images_seen=int(path.stem), path=path, texts=texts, problem=problem)


def _bands(validation: Sequence[Mapping[str, Any]]) -> list[str]:
    """Titles of the bands of timesteps."""
    number = max((len(row.get("bands", ())) for row in validation), default=0)
    width = _TIMESTEPS // max(number, 1)
    return [f"Validation loss, timesteps {index * width} to {(index + 1) * width}" for index in range(number)]


def _shown(figure: str, value: Any) -> Any:
    return 100 * value if figure in _SHARES and is_number(value) else value


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"
