"""Retries of rejected images: planned in `retry_plans/<n>.json`, worked on like any unit, committed once each.

A plan fixes which images a retry tries: those of the given reasons that were rejected when it was made. It is created
exclusively, and the next one only when each unit of it is committed. So two commands at the same time work on one retry, and
one that was killed is resumed; neither tries an image twice.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from foundry.errors import UserError
from foundry.storage.folder import Folder
from foundry.units.commits import Commit, Rejections, Unit, committed_retries, read_commits
from foundry.wording import counted

_PLANS = "retry_plans"


@dataclass(frozen=True, kw_only=True)
class Retry:
    """The newest retry of a run."""

    number: int
    """Number of the retry, from 1."""
    reasons: tuple[str, ...]
    """The reasons of the images that it tries, sorted; empty for all."""
    units: tuple[Unit, ...]
    """The units that are not committed yet."""

    @property
    def num_images(self) -> int:
        """Images that are still to be tried."""
        return sum(unit.num_images for unit in self.units)


def start_retry(run: Folder, units: Sequence[Unit], *, reasons: Collection[str]) -> Retry | None:
    """Resumes the retry that is not finished, else plans one; None if no image is rejected for these reasons (none: any).

    `units` are those of the run's plan. Raises UserError if one of other reasons is not finished.
    """
    wanted = tuple(sorted(set(reasons)))
    newest = open_retry(run, lambda: units)
    if newest is None:
        number = len(_numbers(run)) + 1
        # Read after the retries before were seen to be finished: what is rejected now is what they left.
        planned = _rejected_by_unit(read_commits(run), wanted)
        if not planned:
            return None
        plan = {"retry": number, "reasons": wanted, "units": planned}
        run.create(_plan_name(number), json.dumps(plan, indent=1).encode())
        newest = _read_retry(run, number, units)  # ours, or that of a command that was faster
    if newest.reasons != wanted and newest.units:
        raise UserError(
            f"retry {newest.number} of {' '.join(newest.reasons) or 'all reasons'} is not finished, "
            f"{counted(newest.num_images, 'image')} still to try: retry with the same reasons first, then with others",
            setting="retry_rejected",
        )
    return newest


def open_retry(run: Folder, units: Callable[[], Sequence[Unit]]) -> Retry | None:
    """The retry that is not finished, with what is left of it; None if there is none.

    `units` gives those of the run's plan, and is called only if there was a retry.
    """
    numbers = _numbers(run)
    newest = _read_retry(run, numbers[-1], units()) if numbers else None
    return newest if newest is not None and newest.units else None


def _numbers(run: Folder) -> list[int]:
    return sorted(int(name.removesuffix(".json")) for name in run.names(_PLANS))


def _plan_name(number: int) -> str:
    return f"{_PLANS}/{number}.json"


def _rejected_by_unit(commits: Sequence[Commit], reasons: Sequence[str]) -> list[dict[str, Any]]:
    counts = {commit.unit: _count(commit.rejected, reasons) for commit in commits}
    return [
        {"unit": commit.unit, "num_images": counts[commit.unit], "rejected": commit.files["rejected"].path}
        for commit in commits
        if counts[commit.unit]
    ]


def _count(rejected: dict[str, int], reasons: Sequence[str]) -> int:
    return Counter(rejected).total() if not reasons else sum(rejected.get(reason, 0) for reason in reasons)


def _read_retry(run: Folder, number: int, units: Sequence[Unit]) -> Retry:
    plan = json.loads(run.read(_plan_name(number)))
    reasons, done = tuple(plan["reasons"]), committed_retries(run)
    by_number = {unit.number: unit for unit in units}
    left = [planned for planned in plan["units"] if number not in done.get(planned["unit"], ())]
    return Retry(
        number=number,
        reasons=reasons,
        units=tuple(
            Unit(
                number=planned["unit"],
                part=by_number[planned["unit"]].part,
                row_group=by_number[planned["unit"]].row_group,
                num_images=planned["num_images"],
                retry=number,
                rejections=Rejections(path=planned["rejected"], reasons=reasons),
            )
            for planned in left
        ),
    )
