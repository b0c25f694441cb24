"""Run of units on Ray with a progress bar and a rejection budget; shared by captioning, scoring and features."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from foundry.units.cluster import RaySettings
from foundry.units.commits import Commit, Unit

if TYPE_CHECKING:
    from foundry.units.progress import Progress
    from foundry.units.workers import UnitJob


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
    from foundry.units.progress import Progress
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
    progress: "Progress", work: Callable[[], None], *, prepare: Callable[[], None] | None = None, what: str = "images"
) -> bool:
    """Does the work with a progress bar; False, with a line on stderr, where the budget is used up before or during it.

    `prepare` is called before the bar is shown, and not where nothing is left of the budget.
    """
    from foundry.units.progress import BudgetExceeded

    if progress.budget < 0:
        print(f"error: more {what} are rejected already than max_rejected allows: raise it to resume", file=sys.stderr)
        return False
    if prepare is not None:
        prepare()
    try:
        with progress:
            work()
    except BudgetExceeded as error:
        print(f"error: {error}: see the reasons in rejected, or raise max_rejected", file=sys.stderr)
        return False
    return True
