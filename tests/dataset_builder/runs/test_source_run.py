"""The images of a run are planned again for another run, as a query names them, with the captions that it had then."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dataset_builder.runs.plan import Plan, read_plan
from dataset_builder.runs.source_run import ALL_CAPTIONED, chosen_images, plan_from_run, read_captions, read_source_record
from dataset_builder.sql.run_files import read_run
from foundry.errors import UserError
from foundry.images.index import INDEX
from foundry.storage.folder import Folder
from foundry.units.commits import read_unit
from tests.dataset_builder.small_run import SmallRun

SMALL = SmallRun()
"""Images img_0 … img_7 in units of 3, of which two are committed, with img_4 rejected."""


@pytest.fixture
def source(tmp_path: Path) -> Folder:
    return SMALL.write(Folder(str(tmp_path / "source")))


def plan(source: Folder, *, only: str = ALL_CAPTIONED, out: str = "new", unit_size: int = 2) -> tuple[Folder, Plan]:
    run = Folder(f"{source.url}/../{out}")
    with chosen_images(source.url, only=only) as chosen:
        return run, plan_from_run(run, chosen, unit_size=unit_size)


def planned_keys(run: Folder, plan: Plan) -> list[list[str]]:
    return [[row["key"] for row in read_unit(run, unit)] for unit in plan.units()]


def test_images_keep_their_rows_and_their_order_in_units_of_another_size(source: Folder) -> None:
    run, made = plan(source)
    assert planned_keys(run, made) == [["img_0", "img_1"], ["img_2", "img_3"], ["img_5"]]
    rows = [row for unit in made.units() for row in read_unit(run, unit)]
    whole = [row for part in ("0", "1") for row in index_of(source, part)]
    assert [{name: row[name] for name in INDEX.names} for row in rows] == [row for row in whole if row["key"] != "img_4"]
    assert made.carried == SMALL.carried


def index_of(source: Folder, part: str) -> list[dict[str, object]]:
    with source.open(f"images/plan-0-ab12-0000000{part}.parquet") as file:
        rows: list[dict[str, object]] = pq.read_table(file).to_pylist()
    return rows


def test_a_query_names_images_that_have_no_captions_too(source: Folder) -> None:
    run, made = plan(source, only="SELECT key, reason FROM rejected UNION ALL SELECT key, NULL FROM images WHERE key > 'img_5'")
    assert planned_keys(run, made) == [["img_4", "img_6"], ["img_7"]]
    rows = [row for unit in made.units() for row in read_unit(run, unit)]
    assert read_captions(source, rows) == {"img_4": {}, "img_6": {}, "img_7": {}}


def test_captions_are_read_by_key_from_whatever_units_they_are_in(source: Folder) -> None:
    run, made = plan(source, only="SELECT key FROM images WHERE key IN ('img_2', 'img_3')")
    (unit,) = made.units()
    assert read_captions(source, read_unit(run, unit)) == {"img_2": SMALL.captions, "img_3": SMALL.captions}


def test_what_counts_is_what_was_committed_when_the_run_was_planned(source: Folder) -> None:
    run, made = plan(source)
    SMALL.commit(source, 2, range(6, 8))
    assert plan_from_run(run, None, unit_size=2) == plan(source)[1] == made == read_plan(run, unit_size=2)
    everything = plan(source, only="SELECT key FROM images", out="later")[1]
    assert everything.num_images == 7


def test_a_run_over_a_run_over_a_run(source: Folder) -> None:
    plan(source)
    first = Folder(f"{source.url}/../new")
    first.write("run.json", source.read("run.json"))
    run, made = plan(first, only="SELECT key FROM images WHERE key >= 'img_3'", out="second")
    assert planned_keys(run, made) == [["img_3", "img_5"]]
    assert all(row["captions_file"] is None for unit in made.units() for row in read_unit(run, unit))


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("SELECT key AS name FROM images", "must return a column key, it returns name: SELECT key FROM"),
        ("SELECT key FROM images WHERE false", "names no image of .*: ask it with python -m dataset_builder.query first"),
        ("SELECT NULL AS key", "names no image"),
        ("SELECT 'img_9' AS key UNION SELECT 'img_1' UNION SELECT 'x'", "names 2 keys that are not images of .*'img_9'"),
        ("SELECT key FROM image", "there is no table image: did you mean images"),
        ("DROP TABLE images", "DROP statements are not allowed"),
        ("SELECT key FROM images; SELECT 1", "expected one SQL statement, found 2"),
        ("SELECT content AS key FROM read_text('/etc/passwd')", "SQL here only reads the views"),
    ],
)
def test_a_query_that_is_wrong_is_one_line_and_plans_nothing(source: Folder, only: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(source, only=only)
    assert not Folder(f"{source.url}/../new").names("plans")


def test_what_is_not_a_run_or_is_gone_is_said(source: Folder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a captioning run"):
        read_source_record(str(tmp_path))
    run, made = plan(source)
    rows = read_unit(run, made.units()[0])
    source.filesystem.rm_file(source.path(rows[0]["captions_file"]))
    with pytest.raises(UserError, match="the source of the captions, no longer exists: restore that run"):
        read_captions(source, rows)


def test_on_object_storage() -> None:
    source = SMALL.write(Folder("memory://bucket/source-run"))
    run = Folder("memory://bucket/over-source-run")
    with chosen_images(source.url, only=ALL_CAPTIONED) as chosen:
        made = plan_from_run(run, chosen, unit_size=4)
    assert [len(read_captions(source, read_unit(run, unit))) for unit in made.units()] == [4, 1]
    assert read_run(source.url).folder.url == source.url
