"""Forecast of a stage: how often it will see each image, and how long it will take. Warns before days are wasted.

Both warnings are single lines beginning with "warning:". A run's log holds each of them once: a resumed training repeats a
warning only where its settings, its data or its workers have changed. Imports no torch.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from foundry.wording import counted
from trainer.config.ladder import LadderPosition, Rung
from trainer.config.train import TrainConfig
from trainer.data.passes import TrainingWarning, count_passes, passes_warning, training_samples
from trainer.data.skip_list import read_skip_list
from trainer.data.weights import read_weights

LONGEST_S = 7 * 86_400.0
"""Seconds of training above which training warns: a week."""
WARM_UP_STEPS = 10
"""Steps after a start that are not measured: they compile blocks and fill caches."""
FIRST_STEPS = 50
"""Steps after a start by which the speed is known; WARM_UP_STEPS are among them."""


def stage_passes_warning(config: TrainConfig, present: Rung, *, images_per_pass: float) -> TrainingWarning | None:
    """Counts all resolutions of a stage; samples are chosen and weighed by files, whose SQL was asked.

    A pass at `present` has `images_per_pass`; one at a resolution without features counts as having as many.
    """
    skip, weights = read_skip_list(config.data.skip), read_weights(config.data.weights)

    def of(rung: Rung) -> float:
        found = None if rung == present else training_samples(config.features_folder(rung), skip=skip, weights=weights)
        return images_per_pass if found is None else found.per_pass

    counts = [(rung.images_seen, of(rung)) for rung in config.ladder]
    return passes_warning(config.stage, count_passes(counts), num_images=round(counts[0][1]))


def duration_warning(
    config: TrainConfig,
    position: LadderPosition,
    *,
    images_seen: int,
    step_s: float,
    work: Callable[[Rung], float],
    num_workers: int,
    device: str,
) -> TrainingWarning | None:
    """Warns of a stage that takes more than a week from now on; None for one that does not.

    `step_s` is the time of a step at the present resolution. The ones that follow take as much longer as an image of theirs is
    more `work`, in any unit.
    """
    images_per_s = position.rung.batch_size / step_s
    later = sum(rung.images_seen * work(rung) for rung in config.ladder[position.index + 1 :])
    left = position.images_before + position.rung.images_seen - images_seen + later / work(position.rung)
    if left / images_per_s <= LONGEST_S:
        return None
    return TrainingWarning(
        f"{config.stage} takes more than a week for {config.images:,} images with {counted(num_workers, 'worker')} on {device}",
        f"{left / images_per_s / 86_400:,.1f} days are left at {images_per_s:.4g} images/s, the median of steps "
        f"{WARM_UP_STEPS + 1} to {FIRST_STEPS} after the start; lower `images` in `ladder`, raise `num_workers`, or choose a "
        "smaller `network`",
    )


@dataclass(eq=False)
class StepTimer:
    """Times the first steps after a start. What happens between steps (validation, samples, checkpoints) is not counted."""

    wait_for_device: Callable[[], None] = lambda: None
    """Returns when the device has done all its work, so that a step's time is the device's."""
    clock: Callable[[], float] = time.perf_counter
    """Seconds."""
    done: bool = False
    """True once the speed is known: nothing is timed any more."""
    _times: list[float] = field(default_factory=list)

    def begin_rung(self) -> None:
        """Forgets the steps of another resolution."""
        self._times.clear()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Times what is done inside, the wait for data included."""
        if self.done:
            yield
            return
        started = self.clock()
        yield
        self.wait_for_device()
        self._times.append(self.clock() - started)

    def step_s(self) -> float | None:
        """The median time of a step, once, when FIRST_STEPS are timed; None before and after.

        A median, since steps that compile another bucket's shapes would make a mean too long.
        """
        if self.done or len(self._times) < FIRST_STEPS:
            return None
        self.done = True
        return statistics.median(self._times[WARM_UP_STEPS:])
