"""How a run stands: `python -m captioner.status RUN`. Reads the plan and the commits only, also while the job runs."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from dataset_builder.command_line import UserError, run_command
from dataset_builder.storage import Folder

RECENT_UNITS = 20


@dataclass(frozen=True)
class StatusConfig:
    """Settings of `python -m captioner.status`."""

    run: str
    """Folder of a captioning run."""
    json: bool = False
    """Print one line of JSON."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Counts in images. images_per_s is that of the newest commits, None where they do not tell."""

    planned: int
    captioned: int
    rejected: int
    rejected_by_reason: dict[str, int]
    units: int
    units_committed: int
    images_per_s: float | None

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
        text += f"; {self.units_committed} of {self.units} units"
        if self.remaining and self.images_per_s and self.eta_s:
            text += f"; {self.images_per_s:.1f} images/s, {_duration(self.eta_s)} to go"
        return text


def read_status(run: Folder) -> RunStatus:
    """Reads how a run stands. Raises UserError where there is none."""
    from captioner.config import read_record
    from dataset_builder.plan import read_plan
    from dataset_builder.storage import usable
    from dataset_builder.units import read_commits

    record = read_record(run)
    if record is None:
        raise UserError(f"{run.url} holds no captioning run (no run.json): give the --out of python -m captioner.run")
    with usable(run):
        plan = read_plan(run, unit_size=record["settings"]["unit_size"])
        commits = read_commits(run)
    reasons: Counter[str] = Counter()
    for commit in commits:
        reasons.update(commit.rejected)
    return RunStatus(
        planned=plan.num_images,
        captioned=sum(commit.completed for commit in commits),
        rejected=reasons.total(),
        rejected_by_reason=dict(reasons),
        units=plan.num_units,
        units_committed=len(commits),
        images_per_s=_recent_speed(
            [(datetime.fromisoformat(commit.committed_at).timestamp(), commit.planned) for commit in commits]
        ),
    )


def main(config: StatusConfig) -> int:
    """Prints the status; returns 0."""
    import json
    from dataclasses import asdict

    status = read_status(Folder(config.run))
    print(json.dumps(asdict(status) | {"eta_s": status.eta_s}) if config.json else status.line())
    return 0


def _recent_speed(commits: list[tuple[float, int]]) -> float | None:
    """Images per second over the newest commits, given as (time in s, images)."""
    newest = sorted(commits)[-RECENT_UNITS:]
    if len(newest) < 2 or newest[-1][0] <= newest[0][0]:
        return None
    return sum(images for _, images in newest[1:]) / (newest[-1][0] - newest[0][0])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            StatusConfig,
            main,
            prog="python -m captioner.status",
            example="python -m captioner.status runs/photos",
            positional=["run"],
        )
    )
