"""Cost of the training loop apart from training itself: `python -m benchmarks.train_loop`.

The loop of `trainer.fit` itself, on stored features of random latents and captions at T5's real width of 4096, with captions of
up to 120 tokens and batches in two aspect buckets; in the number format that `auto` means here. Validation, samples and
checkpoints are on, each every `every_steps` steps. Time is taken inside the loop, from the end of the last step of the warm-up
to that of the last one.

loop_overhead        share of all time that is not forward, backward, clipping, optimiser or EMA: validation, samples,
checkpoints too
step_overhead        share of a step alone, between those: data, noise, conditions, watching
step_s, core_s       seconds of such a step, and of forward, backward, clipping, optimiser and EMA in it
validation_s, samples_s, checkpoint_s    seconds that the loop waits for one of them: for other intervals, divide by your steps
data_wait            share of the time that waits for the loader
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from benchmarks.report import print_report
from foundry.command_line import run_command

if TYPE_CHECKING:
    from trainer.config.train import TrainConfig
    from trainer.data.batches import MicroBatch
    from trainer.training.train_step import StepResult, StepSettings, TrainState


_SIDE = 32
"""Side of the latents: 256 patches."""
EVENTS = {"validate": "validation", "draw_samples": "samples", "write_checkpoint": "checkpoint"}
"""Functions after a step that are timed apart from steps, and what the figures call them."""


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
    every_steps: int = 10
    """Steps from one validation, grid of samples and checkpoint to the next."""

    def __post_init__(self) -> None:
        numbers = (self.width, self.depth, self.batch_size, self.steps, self.warmup, self.every_steps)
        if self.width % 64 or min(numbers) < 1 or self.every_steps >= self.steps:
            raise ValueError("expected positive numbers, a width that 64 divides, and steps above every_steps")


def main(config: TrainLoopConfig) -> int:
    """Prints the figures; returns 0."""
    from trainer.distributed import Workers
    from trainer.monitoring.run_folder import read_metrics, recorded_precision
    from trainer.training import loop, rung

    clock = StepClock()
    with tempfile.TemporaryDirectory() as directory, ExitStack() as patches:
        patches.enter_context(patch.object(rung, "train_step", clock.train_step))
        for name in EVENTS:
            patches.enter_context(patch.object(rung, name, clock.timed(name, getattr(rung, name))))
        settings = _train_config(config, Path(directory))
        loop.train(settings, Workers())
        run = Path(settings.run_folder)
        rows = [row for row in read_metrics(run) if row["kind"] == "train" and row["step"] > config.warmup]
        dtype = recorded_precision(run)
    figures = clock.figures(config) | {"data_wait": statistics.fmean(row["data_wait"] for row in rows)}
    print_report("training loop", figures, dtype=dtype)
    return 0


@dataclass
class StepTimes:
    """Times of one step, in seconds of the performance counter."""

    ended: float
    core_s: float
    """Seconds in forward, backward, clipping, optimiser and EMA."""


@dataclass
class StepClock:
    """Replaces train_step: the same step, timed."""

    rows: list[StepTimes] = field(default_factory=list)
    events: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: {name: [] for name in EVENTS})
    """Events: when each began, and how long it took, by the name of its function."""

    def figures(self, config: TrainLoopConfig) -> dict[str, float]:
        """All but the share that waits for data."""
        first, *steps = self.rows[config.warmup - 1 :]
        began, ended = first.ended, steps[-1].ended  # whole steps, with all that comes before each
        inside = {
            name: [seconds for start, seconds in events if began <= start < ended] for name, events in self.events.items()
        }
        wall, core = ended - began, sum(step.core_s for step in steps)
        stepping = wall - sum(map(sum, inside.values()))
        return {
            "loop_overhead": 1 - core / wall,
            "step_overhead": 1 - core / stepping,
            "step_s": stepping / len(steps),
            "core_s": core / len(steps),
            **{f"{EVENTS[name]}_s": statistics.fmean(seconds) for name, seconds in inside.items()},
            "images_per_s": config.batch_size * len(steps) / wall,
        }

    def timed(self, name: str, function: Callable[..., None]) -> Callable[..., None]:
        """The same function, timed."""

        def call(*arguments: Any) -> None:
            started = time.perf_counter()
            function(*arguments)
            self.events[name].append((started, time.perf_counter() - started))

        return call

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
    """A text-conditional training on a store of random features, whose VAE is vae-mini: samples are decoded by it."""
    from model.encoders.vae import VAEConfig, load_vae
    from model.formats.checkpoint import PartConfig
    from tests.trainer.tiny_training import tiny_config, write_store
    from trainer.config.data import DataConfig
    from trainer.config.ladder import Rung
    from trainer.config.network import NetworkConfig
    from trainer.config.running import CheckpointConfig, WatchConfig

    vae = load_vae(VAEConfig(name="mini"))
    write_store(
        root / "features",
        resolution=_SIDE * vae.downsampling,
        rows=32,
        caption_width=4096,
        max_caption_tokens=120,
        vae=PartConfig(name="mini", fingerprint=vae.fingerprint()),
        latent_channels=vae.latent_channels,
        downsampling=vae.downsampling,
    )
    images, every_images = (config.warmup + config.steps) * config.batch_size, config.every_steps * config.batch_size
    return tiny_config(
        root,
        ladder=(Rung(resolution=_SIDE * vae.downsampling, images=images, batch_size=config.batch_size),),
        precision="auto",
        network=NetworkConfig(width=config.width, depth=config.depth, num_heads=config.width // 64),
        data=DataConfig(),
        checkpoint=CheckpointConfig(every_images=every_images),
        watch=WatchConfig(every_steps=5, validate_every_images=every_images, sample_every_images=every_images),
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
