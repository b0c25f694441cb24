"""A unit exists only if its commit does, and only once."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_builder.schema import NOUN_COUNTS
from foundry.images.index import IMAGES, REJECTED
from foundry.storage.folder import Folder
from foundry.storage.schema import check_version
from foundry.units.commits import Commit, Unit, commit_unit, committed_units, read_commits

UNIT = Unit(number=3, part="images/plan.parquet", row_group=0, num_images=2)
COUNTS = pa.Table.from_pylist(
    [{"prompt": "dense", "noun": "owl", "count": 2, "count_t5": 1, "num_captions": 2}], schema=NOUN_COUNTS
)


def commit(folder: Folder, table: pa.Table = COUNTS) -> Commit | None:
    rejected = pa.Table.from_pylist([{"key": "a", "uri": "a.jpg", "reason": "broken", "message": "cut"}], schema=REJECTED)
    tables = {"noun_counts": table, "images": IMAGES.empty_table(), "rejected": rejected}
    return commit_unit(folder, run_id="r", unit=UNIT, tables=tables, num_tokens=5)


def test_a_commit_publishes_its_tables(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    written = commit(folder)
    assert written is not None
    assert committed_units(folder) == {3}
    assert read_commits(folder) == [written]
    assert (written.planned, written.completed, written.rejected) == (2, 1, {"broken": 1})
    assert set(written.files) == {"noun_counts", "rejected"}, "tables without rows are not written"
    found = pq.read_table(tmp_path / written.files["noun_counts"].path)
    assert found.equals(COUNTS)
    check_version(found.schema, where="noun_counts")


def test_a_slow_twin_cannot_publish_and_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    first = commit(folder)
    twin = COUNTS.set_column(2, COUNTS.schema.field("count"), pa.array([99]))
    assert first is not None and commit(folder, twin) is None
    assert read_commits(folder) == [first]
    assert folder.names("noun_counts") == [Path(first.files["noun_counts"].path).name]


def test_equal_tables_have_equal_digests(tmp_path: Path) -> None:
    one, two = commit(Folder(str(tmp_path / "a"))), commit(Folder(str(tmp_path / "b")))
    assert one is not None and two is not None
    assert one.files["noun_counts"].sha256 == two.files["noun_counts"].sha256
    assert one.files["noun_counts"].path != two.files["noun_counts"].path


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    commit(folder)
    record = folder.read("commits/00000003.json").replace(b'"schema_version": 1', b'"schema_version": 99')
    folder.write("commits/00000003.json", record)
    with pytest.raises(ValueError, match="schema version 99"):
        read_commits(folder)


def test_a_store_that_says_no_to_its_own_write_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = Folder.create

    def asked_twice(self: Folder, name: str, data: bytes) -> bool:
        return create(self, name, data) and not name.startswith("commits/")

    monkeypatch.setattr(Folder, "create", asked_twice)
    folder = Folder(str(tmp_path))
    written = commit(folder)
    assert written is not None and read_commits(folder) == [written]
    assert folder.exists(written.files["noun_counts"].path)
