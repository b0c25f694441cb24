"""Cadence of checkpoints, validation and sample grids: by images, by minutes, or by minutes that follow from their cost.

What is due changes nothing of a training but when files are written: a checkpoint at any step resumes to the same weights.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from trainer.config.running import CheckpointConfig, WatchConfig
from trainer.distributed import Workers

MOST_SHARE = 0.003
"""Share of the time that each of the three may take where nothing is set: together below 1 %."""
CHECKPOINT_MINUTES = 15.0
VALIDATION_MINUTES = 30.0
SAMPLE_MINUTES = 60.0


@dataclass(eq=False, kw_only=True)
class Cadence:
    """When one of the three is due."""

    every_images: int | None
    """Images from one to the next; 0 or none: not by images."""
    every_minutes: float | None
    """Minutes likewise."""
    default_minutes: float
    """Minutes where neither is set, or more, so that it takes at most MOST_SHARE of the time."""
    clock: Callable[[], float] = time.perf_counter
    """Seconds."""
    _ended: float = field(init=False)
    _cost_s: float = 0.0

    def __post_init__(self) -> None:
        self._ended = self.clock()

    @property
    def interval_s(self) -> float | None:
        """Seconds from the end of one to the next; none: not by time."""
        if self.every_minutes is not None:
            return self.every_minutes * 60
        if self.every_images is not None:
            return None
        return max(self.default_minutes * 60, self._cost_s / MOST_SHARE)

    def by_images(self, images_seen: int, *, batch_size: int) -> bool:
        """True where the last step reached a multiple of so many images."""
        every = self.every_images
        return every is not None and every > 0 and images_seen // every > (images_seen - batch_size) // every

    def by_time(self) -> bool:
        """True where so much time has passed."""
        return self.interval_s is not None and self.clock() - self._ended >= self.interval_s

    @contextmanager
    def doing(self) -> Iterator[None]:
        """Measures what it costs, and counts the time from its end."""
        started = self.clock()
        yield
        self._ended = self.clock()
        self._cost_s = self._ended - started


@dataclass(frozen=True)
class Due:
    """What is due after a step."""

    validation: bool
    samples: bool
    checkpoint: bool


class Schedule:
    """The cadences of a training, on all workers alike: the first one's clock counts."""

    def __init__(self, checkpoint: CheckpointConfig, watch: WatchConfig, workers: Workers) -> None:
        self._workers = workers
        self.validation = Cadence(
            every_images=watch.validate_every_images,
            every_minutes=watch.validate_every_minutes,
            default_minutes=VALIDATION_MINUTES,
        )
        self.samples = Cadence(
            every_images=watch.sample_every_images,
            every_minutes=watch.sample_every_minutes,
            default_minutes=SAMPLE_MINUTES,
        )
        self.checkpoint = Cadence(
            every_images=checkpoint.every_images,
            every_minutes=checkpoint.every_minutes,
            default_minutes=CHECKPOINT_MINUTES,
        )

    def due(self, images_seen: int, *, batch_size: int, look: bool) -> Due:
        """What is due. All workers call it; several ask for the first one's clock only if `look`, at the same steps."""
        cadences = (self.validation, self.samples, self.checkpoint)
        by_time = [False] * len(cadences)
        if self._workers.num == 1 or (look and any(one.interval_s is not None for one in cadences)):
            by_time = self._workers.from_first([one.by_time() for one in cadences])
        by_images = [one.by_images(images_seen, batch_size=batch_size) for one in cadences]
        return Due(*(timed or counted for timed, counted in zip(by_time, by_images, strict=True)))
