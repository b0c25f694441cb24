"""The status line of a run."""

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dataset_builder.runs.status import RunStatus, read_status
from foundry.storage.folder import Folder
from foundry.storage.schema import SCHEMA_VERSION
from foundry.units.commits import Commit, commit_name
from foundry.units.rejection import allowed_rejections
from foundry.units.run import BudgetExceeded, Progress


def commit(*, planned: int = 8, rejected: int = 0) -> Commit:
    reasons = {"broken": rejected} if rejected else {}
    return Commit(run_id="r", unit=0, planned=planned, completed=planned - rejected, rejected=reasons, files={}, num_tokens=80)


def test_a_line_adds_up_and_tells_when_it_ends() -> None:
    status = RunStatus(
        planned=100,
        captioned=50,
        rejected=10,
        rejected_by_reason={"empty": 4, "broken": 6},
        units=10,
        units_committed=6,
        images_per_s=0.5,
        last_commit_s=7.4,
        captions_by_status={"refusal": 2, "invalid_json": 3},
    )
    assert status.line() == (
        "100 planned = 50 captioned + 10 rejected (broken 6, empty 4) + 40 to do; 6 of 10 units; "
        "captions: 3 invalid_json, 2 refusal; last commit 7 s ago; 0.5 images/s, 1 min 20 s to go"
    )


def status_of(folder: Path, seconds: list[float], *, now: float, unit_s: float = 8.0) -> RunStatus:
    """What is said of a run of 10 units of 8 images, whose first ones were committed at these seconds."""
    settings = {"schema_version": SCHEMA_VERSION, "unit_size": 8}
    record = {"run_id": "r", "settings": settings, "images": [], "carried": {}}
    (folder / "run.json").write_text(json.dumps(record))
    plan = {"parts": [{"path": "", "first_unit": 0, "units": 10, "rows": 80}], "sources": [], "num_repeated": 0}
    for name in ("plans", "commits"):
        (folder / name).mkdir()
    (folder / "plans" / "0.json").write_text(json.dumps(plan))
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for number, second in enumerate(seconds):
        at = (start + timedelta(seconds=second)).isoformat()
        one = replace(commit(), unit=number, committed_at=at, seconds={"process": unit_s})
        (folder / commit_name(number)).write_text(json.dumps(asdict(one)))
    return read_status(Folder(str(folder)), now=start + timedelta(seconds=now))


def test_a_run_that_stands_still_has_no_speed(tmp_path: Path) -> None:
    status = status_of(tmp_path, [0, 10, 20], now=25 * 60)
    assert status.line().endswith("3 of 10 units; last commit 24 min 40 s ago")
    assert status.eta_s is None


def test_slow_units_are_no_pause(tmp_path: Path) -> None:
    status = status_of(tmp_path, [0, 1000], now=2500, unit_s=1000.0)
    assert status.line().endswith("last commit 25 min 00 s ago; 0.0 images/s, 2 h 13 min to go")


def test_a_pause_does_not_count_in_the_speed(tmp_path: Path) -> None:
    status = status_of(tmp_path, [0, 10, 20, 3600, 3610, 3620], now=3621)
    assert status.images_per_s == pytest.approx(0.8)
    assert "last commit 1 s ago; 0.8 images/s" in status.line()


def test_progress_counts_and_stops_past_the_budget() -> None:
    progress = Progress(planned=32, budget=2)
    with progress:
        progress.start()
        progress.update(commit(rejected=2))
        progress.update(None)
        assert (progress.images, progress.rejected, progress.tokens) == (8, 2, 80)
        with pytest.raises(BudgetExceeded, match="3 of the 16 images done just now are rejected, 2 more were allowed"):
            progress.update(commit(rejected=1))


@pytest.mark.parametrize(
    ("share", "images", "allowed"),
    [(None, 24, 100), (None, 50_000, 500), (0.1, 24, 2), (0.0, 10**6, 0), (1.0, 7, 7)],
)
def test_a_hundred_may_be_rejected_where_no_share_was_given(share: float | None, images: int, allowed: int) -> None:
    assert allowed_rejections(share, images) == allowed
