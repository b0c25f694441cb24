"""What the training loop costs beside training: `python -m benchmarks.train_loop`.

The loop of `trainer.fit` itself, on stored features of random latents and captions at T5's real width of 4096, with captions of
up to 120 tokens and batches in two aspect buckets; in the number
format that `auto` stands for. Time is taken inside the loop, between the first measured
step and the last: what passes in forward, backward, clipping, optimiser and EMA, and what passes otherwise.

loop_overhead    share of a step that is not forward, backward, optimiser or EMA: data, noise, conditions, watching
data_wait        share of a step that waits for the loader, part of the former
"""

import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from benchmarks.report import print_report
from foundry.command_line import run_command

if TYPE_CHECKING:
    from trainer.config import TrainConfig
    from trainer.data.batches import MicroBatch
    from trainer.training.train_step import StepResult, StepSettings, TrainState


@dataclass(frozen=True)
class TrainLoopConfig:
    """Settings of the benchmark."""

    width: int = 384
    """Channels of the network, with heads of 64."""
    depth: int = 6
    """Blocks."""
    batch_size: int = 16
    """Images of a step, of 256 patches each."""
    steps: int = 30
    """Steps that are measured."""
    warmup: int = 5
    """Steps before them."""

    def __post_init__(self) -> None:
        if self.width % 64 or min(self.width, self.depth, self.batch_size, self.steps, self.warmup) < 1:
            raise ValueError("expected positive numbers, and a width that 64 divides")


def main(config: TrainLoopConfig) -> int:
    """Prints the figures; returns 0."""
    from trainer.distributed import Workers
    from trainer.monitoring.run_folder import read_metrics, recorded_precision
    from trainer.training import loop, rung

    clock = StepClock()
    with tempfile.TemporaryDirectory() as directory, patch.object(rung, "train_step", clock.train_step):
        settings = _train_config(config, Path(directory))
        loop.train(settings, Workers())
        rows = [row for row in read_metrics(Path(settings.run_folder)) if row["step"] > config.warmup]
        dtype = recorded_precision(Path(settings.run_folder))
    steps = clock.rows[config.warmup - 1 :]
    wall = steps[-1].ended - steps[0].ended  # whole steps, with all that comes before each
    figures = {
        "loop_overhead": 1 - sum(step.core_s for step in steps[1:]) / wall,
        "data_wait": statistics.fmean(row["data_wait"] for row in rows),
        "step_s": wall / config.steps,
        "images_per_s": config.batch_size * config.steps / wall,
    }
    print_report("training loop", figures, dtype=dtype)
    return 0


@dataclass
class StepTimes:
    """Of one step, in seconds of the performance counter."""

    ended: float
    core_s: float
    """In forward, backward, clipping, optimiser and EMA."""


@dataclass
class StepClock:
    """Stands in for train_step: the same step, timed."""

    rows: list[StepTimes] = field(default_factory=list)

    def train_step(
        self, state: "TrainState", objective: Any, parts: "Iterable[MicroBatch]", settings: "StepSettings"
    ) -> "StepResult":
        """Times the step without the preparation of its parts."""
        from trainer.training.train_step import train_step

        began, spent = time.perf_counter(), [0.0]
        result = train_step(state, objective, _timed(parts, spent), settings)
        ended = time.perf_counter()
        self.rows.append(StepTimes(ended=ended, core_s=ended - began - spent[0]))
        return result


def _timed(parts: "Iterable[MicroBatch]", spent: list[float]) -> "Iterator[MicroBatch]":
    """The parts, adding to spent[0] what it takes to make them."""
    iterator = iter(parts)
    while True:
        started = time.perf_counter()
        part = next(iterator, None)
        spent[0] += time.perf_counter() - started
        if part is None:
            return
        yield part


def _train_config(config: TrainLoopConfig, root: Path) -> "TrainConfig":
    """A text-conditional training on a store of random features, without checkpoints and validation on the way."""
    from tests.trainer.tiny_training import tiny_config, write_store
    from trainer.config import CheckpointConfig, DataConfig, NetworkConfig, Rung, WatchConfig

    write_store(root / "features", resolution=64, rows=32, caption_width=4096, max_caption_tokens=120)
    images = (config.warmup + config.steps) * config.batch_size
    return tiny_config(
        root,
        ladder=(Rung(resolution=64, images=images, batch_size=config.batch_size),),
        precision="auto",
        network=NetworkConfig(width=config.width, depth=config.depth, num_heads=config.width // 64),
        data=DataConfig(),
        checkpoint=CheckpointConfig(every_images=images),
        watch=WatchConfig(every_steps=5, validate_every_images=0, sample_every_images=0),
    )


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            TrainLoopConfig,
            main,
            prog="python -m benchmarks.train_loop",
            example="python -m benchmarks.train_loop --steps 50",
        )
    )
