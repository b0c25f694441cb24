"""Run of units on Ray with a progress bar and a rejection budget that stops it; shared by captioning, scoring and features."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from foundry.units.cluster import RaySettings
from foundry.units.commits import Commit, Unit

if TYPE_CHECKING:
    from foundry.units.workers import UnitJob

_SOON_S = 2.0


class BudgetExceeded(Exception):
    """More images were rejected, or more was spent, than is allowed."""


class Progress:
    """Counts commits: images/s, tokens/s, rejected, ETA. `budget` is how many rejections are still allowed."""

    def __init__(self, *, planned: int, budget: int) -> None:
        self.planned = planned
        self.budget = budget
        self.images = self.rejected = self.tokens = 0
        self.started_at = self.ended_at = time.perf_counter()
        self.bar: Any = None

    def __enter__(self) -> "Progress":
        self.bar = tqdm(total=self.planned, unit=" images", mininterval=_interval_s(), smoothing=0.1, dynamic_ncols=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ended_at = time.perf_counter()
        self.bar.close()

    def start(self) -> None:
        """The models are loaded: from here the speed counts."""
        self.started_at = time.perf_counter()
        self.bar.reset()

    def update(self, commit: Commit | None) -> None:
        """Counts a unit; None is one that somebody else committed. Raises BudgetExceeded."""
        if commit is None:
            return
        rejected = commit.num_rejected
        self.images += commit.planned
        self.rejected += rejected
        self.tokens += commit.num_tokens
        seconds = max(time.perf_counter() - self.started_at, 1e-9)
        written = f"{self.tokens / seconds:.0f} tokens/s, " if self.tokens else ""
        self.bar.set_postfix_str(f"{written}{self.rejected} rejected", refresh=False)
        self.bar.update(commit.planned)
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
    print(f"start-up {progress.started_at - started:.1f} s, then {progress.summary()}")
    return True


def within_budget(
    progress: Progress, work: Callable[[], None], *, prepare: Callable[[], None] | None = None, what: str = "images"
) -> bool:
    """Does the work with a progress bar; False, with a line on stderr, where the budget is used up before or during it.

    `prepare` is called before the bar is shown, and not where nothing is left of the budget.
    """
    if progress.budget < 0:
        print(f"error: more {what} are rejected already than max_rejected allows: raise it to resume", file=sys.stderr)
        return False
    if prepare is not None:
        prepare()
    try:
        with progress:
            work()
    except BudgetExceeded as error:
        print(f"error: {error}", file=sys.stderr)
        return False
    return True


def counting(what: str) -> Any:
    """A tqdm that counts images of unknown number, and says nothing of what takes less than two seconds."""
    return tqdm(desc=what, unit=" images", delay=_SOON_S, mininterval=_interval_s())


def _interval_s() -> float:
    """Seconds between progress lines; a log file gets fewer."""
    return 1.0 if sys.stderr.isatty() else 10.0
