"""Trainings of a comparison: each is a run of trainer.fit, RUN_DIR/runs/<arm>/<seed>/<stage>, in this process or on Ray.

Small networks train in this process one after the other, so that nothing has to start for each. Before a training the
compiler's cache is emptied, since it bounds the number of networks that it compiles, and peak memory is counted from there.
"""

import ctypes
import gc
import shutil
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from foundry.errors import NotFinite
from foundry.storage.folder import Folder, new_file, store_errors
from trainer.comparison.arms import BASE, Arm
from trainer.comparison.config import CompareConfig
from trainer.config.running import CheckpointConfig
from trainer.config.train import TrainConfig
from trainer.monitoring.run_folder import LOG, newest_checkpoint, read_metrics, recorded_precision
from trainer.training.loop import train_here

RUNS = "runs"
TIMED = ".timed"
"""Folder of the trainings that are timed; it is removed afterwards."""
TIMED_STEPS = 40
_DIVERGED = "diverged.txt"
_CHECKPOINTS = 4
"""Checkpoints of a training: what a kill costs is at most the share between two."""
_LONGEST = 3.0
"""Steps that take longer than this many times the median are not timed: they compile, or the machine was busy."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training of an arm with a seed."""

    arm: str
    seed: int
    config: TrainConfig

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.run_folder)

    @property
    def log(self) -> Path:
        """The file with what it says."""
        return self.folder / LOG

    @property
    def diverged(self) -> str:
        """Reason why it could not be trained to its end; empty if it was, or if that is not known yet."""
        path = self.folder / _DIVERGED
        return path.read_text(encoding="utf-8").strip() if path.exists() else ""

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint at its end; None if it is not done."""
        newest = newest_checkpoint(self.folder)
        return newest if newest is not None and int(newest.name) >= self.config.images else None

    @property
    def is_over(self) -> bool:
        """True where nothing is left to train."""
        return bool(self.diverged) or self.checkpoint is not None


def make_training(config: CompareConfig, arm: Arm, *, seed: int, images: int) -> Training:
    """The training of an arm that sees this many images, with validations evenly over it and the last one at its end."""
    (rung,) = arm.config.ladder
    settings = replace(
        arm.config,
        seed=seed,
        run_dir=f"{config.run_dir.rstrip('/')}/{RUNS}/{arm.name}/{seed}",
        ladder=(replace(rung, images=images),),
        watch=replace(
            config.watch,
            # The last multiple of this many images is reached in the last step, unless a batch is smaller than their number.
            validate_every_images=max(1, images // min(config.validations, rung.batch_size)),
            sample_every_images=0,
        ),
        checkpoint=CheckpointConfig(
            every_images=min(config.checkpoint.every_images or images, max(1, images // _CHECKPOINTS)),
            every_minutes=config.checkpoint.every_minutes,
            keep_last=1,
            keep_every_images=config.checkpoint.keep_every_images,
        ),
    )
    return Training(arm=arm.name, seed=seed, config=settings)


def with_precision_of(training: Training, first: Training) -> Training:
    """The training in the number format in which the first one began, so that `auto` is the same for all."""
    precision = recorded_precision(first.folder) or training.config.precision
    return replace(training, config=replace(training.config, precision=precision))


def train(training: Training) -> bool:
    """Trains to the end, or until it is told to stop; returns whether there is nothing left to train.

    A training whose loss is not finite is recorded, and left as it is; that of base raises NotFinite.
    """
    try:
        return _run(training.config)
    except NotFinite as error:
        if training.arm == BASE:
            raise
        with store_errors(Folder(str(training.folder))), new_file(training.folder / _DIVERGED) as partial:
            partial.write_text(f"{error}\n", encoding="utf-8")
        return True


def time_step(training: Training) -> float | None:
    """Seconds of a training step of the arm, the mean over a short training of it; None if it was told to stop.

    What a technique does in a share of a training only, it does in that share here too.
    """
    config = training.config
    (rung,) = config.ladder
    short = replace(
        config,
        run_dir=f"{Path(config.run_dir).parent.parent.parent}/{TIMED}",
        ladder=(replace(rung, images=TIMED_STEPS * rung.batch_size),),
        watch=replace(config.watch, every_steps=1, validate_every_images=0, record_losses_every_steps=0, tracker=""),
    )
    shutil.rmtree(short.run_dir, ignore_errors=True)
    try:
        if not _run(short):
            return None
        return usual_step_s(read_metrics(Path(short.run_folder)), batch_size=rung.batch_size)
    finally:
        shutil.rmtree(short.run_dir, ignore_errors=True)


def usual_step_s(rows: Sequence[Mapping[str, Any]], *, batch_size: int) -> float:
    """The mean time of a step, in seconds, by rows of metrics; the first steps and far longer ones are left out."""
    times = [row_seconds(row, batch_size=batch_size) / row["num_steps"] for row in rows if row["kind"] == "train"][1:]
    longest = _LONGEST * median(times)
    return fmean(seconds for seconds in times if seconds <= longest)


def row_seconds(row: Mapping[str, Any], *, batch_size: int) -> float:
    """Seconds that the steps of a row of metrics took; validation and checkpoints are not in it."""
    return float(row["num_steps"] * batch_size / row["images_per_s"])


def _run(config: TrainConfig) -> bool:
    _begin_anew(compiled=config.compile)
    with redirect_stdout(StringIO()):  # log.txt has it all
        if config.num_workers == 1:
            return train_here(config, device=config.device)
        from trainer.training.ray_workers import train_on_ray

        return train_on_ray(config)


def _begin_anew(*, compiled: bool) -> None:
    """Forgets what was compiled, frees memory, and has the peak of memory counted from here."""
    if compiled:
        torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # which gives back what glibc keeps
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: the peak is what is in use
