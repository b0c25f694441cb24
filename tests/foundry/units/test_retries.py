"""A rejected image is tried again once per retry; it counts once, whoever retries at the same time, and its history stays."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foundry.errors import UserError
from foundry.images.index import IMAGES, INDEX, REJECTED
from foundry.storage.folder import Folder
from foundry.units.commits import Commit, Unit, commit_unit, read_commit, read_commits, read_unit, table_bytes
from foundry.units.retries import Retry, open_retry, start_retry

PLAN = [Unit(number=n, part=f"images/plan-{n}.parquet", row_group=0, num_images=3) for n in range(3)]
FIRST = {"0-1": "broken", "0-2": "unreadable", "1-0": "unreadable"}
"""What the first attempts reject; unit 2 is whole."""


@pytest.fixture(params=["disk", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    folder = Folder(str(tmp_path / "run") if request.param == "disk" else f"memory://{tmp_path.name}/run")
    for unit in PLAN:
        rows = [{"key": f"{unit.number}-{n}", "uri": f"/{unit.number}-{n}.jpg", "sidecars": []} for n in range(3)]
        folder.create(unit.part, table_bytes(pa.Table.from_pylist(rows, schema=INDEX)))
        attempt(folder, unit, FIRST)
    return folder


def attempt(run: Folder, unit: Unit, rejected: dict[str, str]) -> Commit | None:
    """One attempt at a unit, of which these images are rejected for these reasons."""
    rows = read_unit(run, unit)
    image: dict[str, Any] = {"content_hash": "00", "width": 4, "height": 3}
    images = [{"key": row["key"], "uri": row["uri"]} | image for row in rows if row["key"] not in rejected]
    bad = [
        {"key": row["key"], "uri": row["uri"], "reason": rejected[row["key"]], "message": f"retry {unit.retry}"}
        for row in rows
        if row["key"] in rejected
    ]
    return commit_unit(
        run,
        run_id="r",
        unit=unit,
        tables={
            "images": pa.Table.from_pylist(images, schema=IMAGES),
            "rejected": pa.Table.from_pylist(bad, schema=REJECTED),
        },
        num_tokens=len(rows),
        seconds={"process": 1.0},
    )


def retry(run: Folder, *reasons: str, rejected: dict[str, str] | None = None) -> Retry:
    """A whole retry, which rejects these images."""
    started = start_retry(run, PLAN, reasons=reasons)
    assert started is not None
    for unit in started.units:
        assert attempt(run, unit, rejected or {}) is not None
    return started


def keys(run: Folder, kind: str) -> list[str]:
    """The keys in all files of a kind that the commits publish now."""
    files = [commit.files[kind] for commit in read_commits(run) if kind in commit.files]
    found = []
    for file in files:
        with run.open(file.path) as opened:
            found += pq.read_table(opened)["key"].to_pylist()
    return found


def check_that_each_image_counts_once(run: Folder, *, rejected: dict[str, int]) -> None:
    commits = read_commits(run)
    assert [(commit.planned, commit.completed + commit.num_rejected) for commit in commits] == [(3, 3)] * 3
    assert sum(commit.num_rejected for commit in commits) == sum(rejected.values())
    counts = {reason: sum(commit.rejected.get(reason, 0) for commit in commits) for reason in rejected}
    assert counts == rejected
    assert sorted([*keys(run, "images"), *keys(run, "rejected")]) == [f"{unit}-{n}" for unit in range(3) for n in range(3)]
    assert commits == [read_commit(run, unit.number) for unit in PLAN]


def test_all_rejected_images_are_captioned_by_a_retry_and_their_history_is_kept(run: Folder) -> None:
    started = retry(run)
    assert (started.number, started.num_images, [unit.number for unit in started.units]) == (1, 3, [0, 1])
    check_that_each_image_counts_once(run, rejected={})
    assert sorted(keys(run, "retried")) == sorted(FIRST)
    newest = read_commit(run, 0)
    assert (newest.retry, newest.num_tokens, newest.seconds, newest.retried) == (
        1,
        5,
        {"process": 2.0},
        {"broken": 1, "unreadable": 1},
    )
    assert start_retry(run, PLAN, reasons=()) is None, "there is nothing left to retry"


def test_only_the_reasons_asked_for_are_tried_and_the_others_stay_rejected(run: Folder) -> None:
    assert start_retry(run, PLAN, reasons=["empty"]) is None
    started = retry(run, "unreadable", rejected={"1-0": "broken"})
    assert {unit.number: unit.num_images for unit in started.units} == {0: 1, 1: 1}
    check_that_each_image_counts_once(run, rejected={"broken": 2})
    assert sorted(keys(run, "retried")) == ["0-2", "1-0"]


def test_a_retry_of_a_retry_adds_to_the_history(run: Folder) -> None:
    retry(run, rejected=FIRST | {"0-1": "model_error"})
    check_that_each_image_counts_once(run, rejected={"model_error": 1, "unreadable": 2})
    assert retry(run, "model_error", "broken").number == 2
    check_that_each_image_counts_once(run, rejected={"unreadable": 2})
    commit = read_commit(run, 0)
    with run.open(commit.files["retried"].path) as file:
        history = pq.read_table(file).select(["key", "reason", "message", "retry"]).to_pylist()
    assert history == [
        {"key": "0-1", "reason": "broken", "message": "retry 0", "retry": 1},
        {"key": "0-2", "reason": "unreadable", "message": "retry 0", "retry": 1},
        {"key": "0-1", "reason": "model_error", "message": "retry 1", "retry": 2},
    ]
    assert read_commit(run, 0, before_retry=2).rejected == {"model_error": 1, "unreadable": 1}


def test_a_retry_that_was_stopped_tries_what_it_had_not_tried_and_nothing_twice(run: Folder) -> None:
    started = start_retry(run, PLAN, reasons=())
    assert started is not None
    attempt(run, started.units[0], FIRST)  # rejected again, and the command is killed here
    left = open_retry(run, lambda: PLAN)
    assert left is not None and (left.number, [unit.number for unit in left.units]) == (1, [1])
    with pytest.raises(UserError, match="retry 1 of all reasons is not finished, 1 image still to try"):
        start_retry(run, PLAN, reasons=["broken"])
    assert start_retry(run, PLAN, reasons=()) == left
    attempt(run, left.units[0], {})
    assert open_retry(run, lambda: PLAN) is None
    check_that_each_image_counts_once(run, rejected={"broken": 1, "unreadable": 1})


def test_of_two_at_the_same_time_one_publishes_each_unit_and_the_other_leaves_nothing(run: Folder) -> None:
    first, second = start_retry(run, PLAN, reasons=()), start_retry(run, PLAN, reasons=())
    assert first is not None and first == second
    assert attempt(run, first.units[0], {}) is not None
    names = {kind: run.names(kind) for kind in ("images", "rejected", "retried")}
    assert attempt(run, second.units[0], FIRST) is None
    assert {kind: run.names(kind) for kind in names} == names
    attempt(run, second.units[1], {})
    check_that_each_image_counts_once(run, rejected={})


def test_one_that_planned_from_what_was_true_before_joins_the_one_that_was_faster(
    run: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look at the plans and its own plan, another command retries everything."""
    create = Folder.create

    def slow(folder: Folder, name: str, data: bytes) -> bool:
        if name == "retry_plans/1.json":
            monkeypatch.setattr(Folder, "create", create)
            retry(run)
        return create(folder, name, data)

    monkeypatch.setattr(Folder, "create", slow)
    joined = start_retry(run, PLAN, reasons=())
    assert joined is not None and joined.units == ()
    check_that_each_image_counts_once(run, rejected={})


def test_a_run_without_retries_and_one_of_before_there_were_any_read_alike(run: Folder) -> None:
    before = read_commits(run)
    for unit in PLAN:
        record = run.read(f"commits/{unit.number:08d}.json").decode()
        assert '"retry": 0,' in record
        old = record.replace('"retry": 0,\n "retried": {},\n', "")
        assert "retry" not in old
        run.write(f"commits/{unit.number:08d}.json", old.encode())
    assert read_commits(run) == before
