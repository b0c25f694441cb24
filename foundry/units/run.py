"""Run of units on Ray with a progress bar and a rejection budget that stops it; shared by captioning, scoring and features."""

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from foundry.reporting.lines import say
from foundry.reporting.progress import Bar
from foundry.units.cluster import RaySettings
from foundry.units.commits import Commit, Unit

if TYPE_CHECKING:
    from foundry.units.workers import UnitJob


class BudgetExceeded(Exception):
    """More images were rejected, or more was spent, than is allowed."""


class Progress:
    """Counts commits: images/s, tokens/s, rejected, ETA. `budget` is how many rejections are still allowed."""

    def __init__(self, *, planned: int, budget: int) -> None:
        self.planned = planned
        self.budget = budget
        self.images = self.rejected = self.tokens = 0
        self.started_at = self.ended_at = time.perf_counter()
        self.bar = Bar("images", total=planned)

    def __enter__(self) -> "Progress":
        self.bar.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ended_at = time.perf_counter()
        self.bar.__exit__(kind, error, trace)

    def start(self) -> None:
        """The models are loaded: from here the speed counts."""
        self.started_at = time.perf_counter()
        self.bar.restart()

    def update(self, commit: Commit | None) -> None:
        """Counts a unit; None is one that somebody else committed. Raises BudgetExceeded."""
        if commit is None:
            return
        rejected = commit.num_rejected
        self.images += commit.planned
        self.rejected += rejected
        self.tokens += commit.num_tokens
        seconds = max(time.perf_counter() - self.started_at, 1e-9)
        written = {"tokens_per_s": round(self.tokens / seconds, 1)} if self.tokens else {}
        self.bar.advance(commit.planned, **written, rejected=self.rejected)
        self.check_budget(0)

    def check_budget(self, num_uncommitted: int) -> None:
        """Raises BudgetExceeded; `num_uncommitted` images are rejected already in units that are not done."""
        rejected = self.rejected + num_uncommitted
        if rejected > self.budget:
            raise BudgetExceeded(
                f"{rejected} of the {self.images + num_uncommitted} images done just now are rejected, "
                f"{self.budget} more were allowed: see the reasons in rejected, or raise max_rejected"
            )

    def summary(self) -> str:
        """Images, time and speed since the models were loaded."""
        seconds = max(self.ended_at - self.started_at, 1e-9)
        speed = f"{self.images / seconds:.1f} images/s"
        speed += f", {self.tokens / seconds:.0f} tokens/s" if self.tokens else ""
        return f"{self.images} images in {seconds:.1f} s: {speed}"


def run_job(
    job: "UnitJob",
    units: Sequence[Unit],
    *,
    settings: RaySettings,
    visible: Mapping[str, str],
    budget: int,
    started: float,
    replica_bytes: float = 0,
    on_ray: Callable[[], None] | None = None,
    what: str = "images",
    on_commit: Callable[[Commit], None] | None = None,
) -> bool:
    """Runs all units and prints the speed; False, with a line on stderr, where more than `budget` images are rejected.

    A budget below zero is used up already: then nothing is run.
    Every node must see the local paths in `visible` (ray_session.check_visible). `started` is when the command began, by
    time.perf_counter(). `replica_bytes` is what a replica takes of a node's memory (RaySettings.slots). `on_ray` is called
    once Ray is there and the paths are seen, `on_commit` with each unit that is committed; `what` is what the units hold.
    Raises UserError as run_units does.
    """
    from foundry.units.ray_driver import run_units
    from foundry.units.ray_session import check_visible, start_ray

    progress = Progress(planned=sum(unit.num_images for unit in units), budget=budget)

    def update(commit: Commit | None) -> None:
        if commit is not None and on_commit is not None:
            on_commit(commit)
        progress.update(commit)

    def work() -> None:
        run_units(
            job,
            units,
            settings=settings,
            on_start=progress.start,
            on_commit=update,
            on_reject=progress.check_budget,
            replica_bytes=replica_bytes,
        )

    def prepare() -> None:
        start_ray(settings)
        check_visible(visible)
        if on_ray is not None:
            on_ray()

    if not within_budget(progress, work, prepare=prepare, what=what):
        return False
    say(f"start-up {progress.started_at - started:.1f} s, then {progress.summary()}")
    return True


def within_budget(
    progress: Progress, work: Callable[[], None], *, prepare: Callable[[], None] | None = None, what: str = "images"
) -> bool:
    """Does the work with a progress bar; False, with a line on stderr, where the budget is used up before or during it.

    `prepare` is called before the bar is shown, and not where nothing is left of the budget.
    """
    if progress.budget < 0:
        say(f"error: more {what} are rejected already than max_rejected allows: raise it to resume", err=True)
        return False
    if prepare is not None:
        prepare()
    try:
        with progress:
            work()
    except BudgetExceeded as error:
        say(f"error: {error}", err=True)
        return False
    return True
