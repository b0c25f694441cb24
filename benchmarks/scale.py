"""Growth of costs with the number of units: `python -m benchmarks.scale`.

A store of units is written with real commit records and the files of one unit alone, since no step measured here reads more of
them. Each step runs at every number of units; its slope is that of a line through them. `status` and `sql` are whole commands,
Python's start included: `first` without an index of the commit records, which it writes. `training_start` is what a worker does
before its first batch: it opens the features, orders them and reads the batch; imports and the network do not grow. `cpu` is
processor time, which other work on the machine changes less than the clock.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.report import print_report
from foundry.command_line import run_command
from foundry.storage.folder import Folder

_IMAGES_PER_UNIT = 512
_SAMPLES_PER_UNIT = 60
_BATCH = 240
_SQL = "SELECT count(*), sum(completed) FROM commits"


@dataclass(frozen=True)
class ScaleConfig:
    """Settings of the benchmark."""

    units: tuple[int, ...] = (1_000, 10_000, 100_000)
    """Numbers of units to measure at."""
    folder: str = ""
    """Folder in which the stores are written and stay; default: a temporary one. Stores that are there already are used."""


def main(config: ScaleConfig) -> int:
    """Prints the figures; returns 0."""
    if config.folder:
        figures = measure(config.units, Path(config.folder))
    else:
        with tempfile.TemporaryDirectory(prefix="t2i-scale-") as directory:
            figures = measure(config.units, Path(directory))
    print_report("Costs by the number of units", figures)
    return 0


def measure(units: tuple[int, ...], folder: Path) -> dict[str, float | None]:
    """Seconds of each step at each number of units, and its slope in seconds per 100,000 units; the same of processor time."""
    times: dict[str, dict[int, float]] = {}
    for number in units:
        run, features = folder / f"run-{number}", folder / f"features-{number}"
        write_run(run, number)
        write_features(features, number)
        for step, work in _steps(run, features).items():
            for kind, seconds in zip(("", "_cpu"), _seconds(work), strict=True):
                times.setdefault(f"{step}{kind}", {})[number] = seconds
    figures: dict[str, float | None] = {
        f"{step}_{number}_s": seconds for step, found in times.items() for number, seconds in found.items()
    }
    return figures | {f"{step}_s_per_100k": slope(found) for step, found in times.items()}


def slope(found: Mapping[int, float]) -> float | None:
    """Seconds per 100,000 units of the line through these points by least squares; none for one point."""
    mean_x, mean_y = sum(found) / len(found), sum(found.values()) / len(found)
    spread = sum((number - mean_x) ** 2 for number in found)
    return sum((number - mean_x) * (y - mean_y) for number, y in found.items()) / spread * 1e5 if spread else None


def _steps(run: Path, features: Path) -> dict[str, Callable[[], None]]:
    status, sql = ("captioner.status", str(run)), ("dataset_builder.query", str(run), _SQL)
    return {
        "status_first": lambda: _command(*status, without_index=run),
        "status": lambda: _command(*status),
        "sql": lambda: _command(*sql),
        "training_start_first": lambda: start_training(features, without_index=True),
        "training_start": lambda: start_training(features),
    }


def _seconds(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds on the clock and of processors, this process's and those of its children."""
    started, times = time.perf_counter(), os.times()
    work()
    return time.perf_counter() - started, sum(os.times()[:4]) - sum(times[:4])


def _command(module: str, *arguments: str, without_index: Path | None = None) -> None:
    if without_index:
        _remove_index(without_index)
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, stdout=subprocess.DEVNULL)


def start_training(features: Path, *, without_index: bool = False) -> None:
    """Does what a worker does before its first batch."""
    from trainer.data.loader import CaptionChoice, Loader
    from trainer.data.order import DataOrder
    from trainer.features.plan import TRAIN
    from trainer.features.store import FeatureStore

    if without_index:
        _remove_index(features)
    store = FeatureStore.open(str(features))
    order = DataOrder(store.samples(TRAIN), seed=0, batch_size=_BATCH, weights=None)
    choice = CaptionChoice(dropout=0.1, weights=None)
    with Loader(store, order, start_images_seen=0, rank=0, world_size=1, num_workers=1, prefetch=1, captions=choice) as loader:
        next(loader)


def _remove_index(folder: Path) -> None:
    from foundry.records.index import INDEX_FILE

    (folder / INDEX_FILE).unlink(missing_ok=True)


def write_run(folder: Path, units: int) -> None:
    """Writes a captioning run with this many units, unless it is there."""
    from benchmarks.synthetic_run import SyntheticRun
    from benchmarks.synthetic_run import write_run as write_whole_run

    if folder.is_dir():
        return
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_whole_run(partial, SyntheticRun(num_captions=_IMAGES_PER_UNIT, num_units=1, num_nouns=1000))
    plan = {"path": "images/plan-0.parquet", "first_unit": 0, "units": units, "rows": units * _IMAGES_PER_UNIT}
    (partial / "plans" / "0.json").write_text(json.dumps({"parts": [plan], "sources": [], "num_repeated": 0}))
    _write_records(partial, units)
    partial.rename(folder)


def write_features(folder: Path, units: int) -> None:
    """Writes a feature store with this many units, unless it is there; all units have the files of the first one."""
    import torch

    from benchmarks.features import LATENT, WIDTH, write_store
    from trainer.features.plan import read_feature_plan

    if folder.is_dir():
        return
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    tokens, latents = torch.zeros(8, WIDTH), torch.zeros(_SAMPLES_PER_UNIT, 2, *LATENT)
    write_store(partial, [tokens] * _SAMPLES_PER_UNIT, latents, "bfloat16")
    (unit,) = read_feature_plan(Folder(str(partial))).units
    plan = [asdict(replace(unit, number=number)) for number in range(units)]
    (partial / "plan" / "0.json").write_text(json.dumps({"units": plan, "validation_share": 0.0}))
    _write_records(partial, units, has_own_files=False)
    partial.rename(folder)


def _write_records(folder: Path, units: int, *, has_own_files: bool = True) -> None:
    """Writes the commit records of all units but the first after its example."""
    from foundry.units.commits import commit_name, read_commit

    first = read_commit(Folder(str(folder)), 0)
    for number in range(1, units):
        files = {
            kind: replace(file, path=file.path.replace(f"{0:08d}", f"{number:08d}", 1) if has_own_files else file.path)
            for kind, file in first.files.items()
        }
        record = replace(first, unit=number, files=files)
        (folder / commit_name(number)).write_text(json.dumps(asdict(record), indent=1))


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            ScaleConfig, main, prog="python -m benchmarks.scale", example="python -m benchmarks.scale --units 1000 10000"
        )
    )
