"""Status of a captioning run: images planned, captioned and rejected, and the speed, from its plan and its commits alone."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from operator import attrgetter

from dataset_builder.runs.plan import Plan, read_plan
from foundry.errors import UserError
from foundry.storage.folder import Folder, store_errors
from foundry.storage.run_record import RunRecord
from foundry.units.commits import Commit, read_commits
from foundry.units.retries import Retry, open_retry
from foundry.wording import counted, duration

ASKED_ANEW = ("invalid_json", "refusal")
"""Statuses of captions whose images are captioned again in a new run, since greedy decoding repeats an answer."""
RECENT_UNITS = 20
SHORTEST_PAUSE_S = 60.0
PAUSE_UNITS = 3.0
"""A run counts as paused when nothing was committed for this many times the duration of a unit, and for SHORTEST_PAUSE_S."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Counts in images, but for captions. images_per_s is that of the newest commits without pauses, None if they do not
    tell or the run is paused; last_commit_s is how old the newest one is, None if there is none. to_retry are those of the
    rejected images that a retry has yet to try again.
    """

    planned: int
    captioned: int
    rejected: int
    rejected_by_reason: dict[str, int]
    units: int
    units_committed: int
    images_per_s: float | None
    last_commit_s: float | None
    to_retry: int = 0
    captions_by_status: dict[str, int] = field(default_factory=dict)
    """Captions that are empty, by their status; those of units that were committed before it was recorded are not counted."""

    @property
    def remaining(self) -> int:
        """Images that no unit has been committed for."""
        return self.planned - self.captioned - self.rejected

    @property
    def eta_s(self) -> float | None:
        """Seconds until the whole plan is done at the newest speed."""
        return self.remaining / self.images_per_s if self.images_per_s else None

    def line(self) -> str:
        """One line for a person."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.rejected_by_reason.items()))
        text = f"{self.planned} planned = {self.captioned} captioned + {self.rejected} rejected" + (
            f" ({reasons})" if reasons else ""
        )
        if self.remaining:
            text += f" + {self.remaining} to do"
        text += f"; {self.units_committed} of {counted(self.units, 'unit')}"
        if self.captions_by_status:
            text += "; captions: " + ", ".join(f"{count} {status}" for status, count in sorted(self.captions_by_status.items()))
        if self.to_retry:
            text += f"; {counted(self.to_retry, 'rejected image')} to retry"
        if self.remaining and self.last_commit_s is not None:
            text += f"; last commit {duration(self.last_commit_s)} ago"
        if self.remaining and self.images_per_s and self.eta_s:
            text += f"; {self.images_per_s:.1f} images/s, {duration(self.eta_s)} to go"
        return text

    def advice(self, url: str) -> list[str]:
        """A line for each status of which captions of the run at `url` can be asked for again, with the command to do so."""
        found = {status: self.captions_by_status.get(status, 0) for status in ASKED_ANEW}
        return [
            f"{counted(number, 'caption')} with the status {status}, whose images are not rejected: "
            f"{caption_anew(status, run=url)}"
            for status, number in found.items()
            if number
        ]


def caption_anew(status: str, *, run: str) -> str:
    """Advice about the captions of a run that have this status, as part of a sentence."""
    return (
        "caption these images again with other settings, in a new run, with python -m captioner.run "
        f"--captions_from {shlex.quote(run)} --only \"SELECT key FROM captions WHERE status = '{status}'\" --out NEW "
        "with the prompts, model and engine to use"
    )


def read_status(run: Folder, *, now: datetime | None = None) -> RunStatus:
    """Reads the status of a run at this time. Raises UserError if there is none."""
    record = RunRecord.read(run)
    if record is None:
        raise UserError(f"{run.url} holds no captioning run (no run.json): give the folder that captioner.run wrote")
    record.check(run)
    with store_errors(run):
        plan = read_plan(run, unit_size=record.unit_size)
        return status_of(plan, read_commits(run), retry=open_retry(run, plan.units), now=now)


def status_of(plan: Plan, commits: Sequence[Commit], *, retry: Retry | None = None, now: datetime | None = None) -> RunStatus:
    """The status of a run with this plan, these commits, and this retry that is not finished."""
    newest = [_Step.of(commit) for commit in sorted(commits, key=attrgetter("committed_at"))[-RECENT_UNITS:]]
    last_commit_s = max(0.0, (now or datetime.now(UTC)).timestamp() - newest[-1].at) if newest else None
    reasons: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    for commit in [one for one in commits if one.rejected or one.statuses]:  # few of very many
        reasons.update(commit.rejected)
        statuses.update(commit.statuses)
    return RunStatus(
        planned=plan.num_images,
        captioned=sum(commit.completed for commit in commits),
        rejected=reasons.total(),
        rejected_by_reason=dict(reasons),
        captions_by_status=dict(statuses),
        units=plan.num_units,
        units_committed=len(commits),
        to_retry=retry.num_images if retry else 0,
        images_per_s=None if last_commit_s is None or last_commit_s > _pause_s(newest) else _speed(newest),
        last_commit_s=last_commit_s,
    )


@dataclass(frozen=True)
class _Step:
    """What the speed needs of a commit: its time, the duration of its unit in seconds, and its images."""

    at: float
    images: int
    seconds: float

    @staticmethod
    def of(commit: Commit) -> "_Step":
        images = sum(commit.retried.values()) or commit.planned
        return _Step(datetime.fromisoformat(commit.committed_at).timestamp(), images, sum(commit.seconds.values()))


def _pause_s(newest: Sequence[_Step]) -> float:
    """The time without a commit from which on a run counts as paused."""
    return max(SHORTEST_PAUSE_S, PAUSE_UNITS * max(step.seconds for step in newest))


def _speed(newest: Sequence[_Step]) -> float | None:
    """Images per second; a pause, and the unit that ended it, do not count."""
    worked = [(after.at - before.at, after.images) for before, after in pairwise(newest)]
    worked = [(seconds, images) for seconds, images in worked if seconds <= _pause_s(newest)]
    seconds = sum(seconds for seconds, _ in worked)
    return sum(images for _, images in worked) / seconds if seconds else None
