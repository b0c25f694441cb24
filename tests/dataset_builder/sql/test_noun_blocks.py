"""Counts are the same with and without the sums of blocks, whatever becomes of a merging, and the sums are what is read."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dataset_builder.convert import ConvertConfig
from dataset_builder.convert import main as convert
from dataset_builder.sql import run_files
from dataset_builder.sql.noun_blocks import merge_counts_of
from dataset_builder.sql.run_files import merged_folder, open_run, read_run
from foundry.storage.folder import Folder
from foundry.units.commits import Unit, commit_name, commit_unit, committed_units, read_commits
from tests.dataset_builder.small_run import MINI_T5, SmallRun
from tests.foundry.images.containers import jpeg, write
from tests.foundry.units.plain_loop import run_plainly

QUESTIONS = (
    "FROM noun_counts ORDER BY prompt, noun",
    "FROM stored.tallies ORDER BY prompt",
    "FROM density() ORDER BY ALL",
    "FROM rarefied(5) ORDER BY prompt",
    "FROM compare('dense', 'short') ORDER BY noun",
)
SMALL = SmallRun(num_images=20, unit_size=3, num_committed=5)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_files, "BLOCK_UNITS", 2)


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    """Seven units, of which five are committed: two whole blocks, and one unit in none."""
    return SMALL.write(Folder(str(tmp_path / "run")))


def answers(run: Folder) -> list[Any]:
    with open_run(run.url) as database:
        return [database.fetch(question).to_pylist() for question in QUESTIONS]


def published(run: Folder) -> set[int]:
    return committed_units(merged_folder(run))


def test_answers_are_the_same_and_come_from_the_blocks(run: Folder) -> None:
    before = answers(run)
    assert merge_counts_of(read_run(run.url)) == 2
    assert answers(run) == before
    files = read_run(run.url)
    folders = [path.split("/")[:-1] for path in files.paths("noun_counts")]
    assert folders == [["merged", "noun_counts"], ["merged", "noun_counts"], ["noun_counts"]]
    assert [path.split("/")[-1][:8] for path in files.paths("loose_captions")] == ["00000004"]
    assert merge_counts_of(read_run(run.url)) == 0


def test_the_sums_are_read_in_place_of_the_units_files(run: Folder) -> None:
    merge_counts_of(read_run(run.url))
    for commit in read_commits(run)[1:4]:  # duckdb looks into the first one, for its columns
        for kind in ("noun_counts", "captions"):
            run.write(commit.files[kind].path, b"nobody reads this")
    with open_run(run.url) as database:
        assert database.fetch("SELECT num_captions FROM stored.tallies")["num_captions"].to_pylist() == [14, 14]
        assert database.fetch("SELECT count FROM noun_counts WHERE noun = 'owl'")["count"].to_pylist() == [14, 14]


def test_a_run_that_resumes_gets_the_blocks_that_have_become_whole(run: Folder) -> None:
    merge_counts_of(read_run(run.url))
    SMALL.commit(run, 5, range(15, 18))
    SMALL.commit(run, 6, range(18, 20))
    before = answers(run)
    assert merge_counts_of(read_run(run.url)) == 1
    assert answers(run) == before
    assert published(run) == {0, 1, 2}


def test_a_merging_that_was_killed_before_its_record_is_done_again(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    create = Folder.create

    def killed(self: Folder, name: str, data: bytes) -> bool:
        if self.url.endswith("merged") and name == commit_name(1):
            raise KeyboardInterrupt
        return create(self, name, data)

    before = answers(run)
    with monkeypatch.context() as dying:
        dying.setattr(Folder, "create", killed)
        with pytest.raises(KeyboardInterrupt):
            merge_counts_of(read_run(run.url))
    left_behind = merged_folder(run).names("noun_counts")
    assert published(run) == {0} and len(left_behind) == 2
    assert answers(run) == before
    assert merge_counts_of(read_run(run.url)) == 1
    assert answers(run) == before
    assert set(merged_folder(run).names("noun_counts")) > set(left_behind)


def test_the_record_of_other_files_is_ignored_and_replaced(run: Folder) -> None:
    before = answers(run)
    lies = pa.Table.from_pylist([{"prompt": "dense", "noun": "owl", "count": 999, "count_t5": 0, "num_captions": 1}])
    unit = Unit(number=0, part="", row_group=0, num_images=6)
    commit_unit(merged_folder(run), run_id="of other files", unit=unit, tables={"noun_counts": lies})
    assert len(read_run(run.url).blocks) == 0 and answers(run) == before
    assert merge_counts_of(read_run(run.url)) == 2
    assert len(read_run(run.url).blocks) == 2 and answers(run) == before
    assert merge_counts_of(read_run(run.url)) == 0
    record = json.loads(run.read(commit_name(3)))
    record["files"]["noun_counts"]["sha256"] = "of another attempt"
    run.write(commit_name(3), json.dumps(record).encode())
    assert [block.unit for block in read_run(run.url).blocks] == [0]
    assert answers(run) == before


def test_who_merges_the_same_at_the_same_time_publishes_it_once(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = answers(run)
    merge_counts_of(read_run(run.url))
    monkeypatch.setattr("dataset_builder.sql.noun_blocks.read_commits", lambda _: [])  # as the slower one saw it
    merge_counts_of(read_run(run.url))
    assert len(merged_folder(run).names("noun_counts")) == 2
    assert answers(run) == before


def test_on_object_storage() -> None:
    run = SMALL.write(Folder("memory://bucket/merged-run"))
    before = answers(run)
    assert merge_counts_of(read_run(run.url)) == 2
    assert answers(run) == before
    assert len(read_run(run.url).blocks) == 2
    run.filesystem.rm("/bucket", recursive=True)


def test_an_import_merges_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foundry.units.run.run_job", run_plainly)
    monkeypatch.setattr("dataset_builder.runs.importing._UNIT_IMAGES", 1)
    for number in range(2):
        write(tmp_path / "photos" / f"{number}.jpg", jpeg(number))
        write(tmp_path / "photos" / f"{number}.txt", "An owl on a tree.")
    config = ConvertConfig(
        input=str(tmp_path / "photos"), out=str(tmp_path / "run"), source="image-txt", target="run", t5=MINI_T5
    )
    assert convert(config) == 0
    assert published(Folder(config.out)) == {0}
    with open_run(config.out) as database:
        assert database.fetch("SELECT DISTINCT num_captions FROM density()").to_pylist() == [{"num_captions": 2}]
