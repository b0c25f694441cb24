"""A large store is read from one file, and never from what its records no longer say."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from foundry.errors import UserError
from foundry.records.commit import Commit, CommittedFile
from foundry.records.index import INDEX_FILE, LEAST_RECORDS
from foundry.storage.folder import Folder
from foundry.units.commits import commit_name, named_files, read_commits

COUNT = LEAST_RECORDS + 10


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    folder = Folder(str(tmp_path / "run") if request.param == "disk" else f"memory://{tmp_path.name}/run")
    for number in range(COUNT):
        write(folder, commit(number))
    retry = commit(3, retry=1, rejected={}, retried={"broken": 1}, planned=1, completed=1)
    write(folder, retry)
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The records that are read one by one."""
    names: list[str] = []
    read_many = Folder.read_many

    def noted(self: Folder, wanted: list[str]) -> dict[str, bytes]:
        names.extend(wanted)
        return read_many(self, wanted)

    monkeypatch.setattr(Folder, "read_many", noted)
    return names


def commit(number: int, **changes: object) -> Commit:
    files = {
        kind: CommittedFile(
            path=f"{kind}/{number:08d}-ab.parquet", rows=number, num_bytes=2**40 + number, sha256=f"{number:064x}"
        )
        for kind in ("images", "captions")[: 1 + number % 2]
    }
    whole = Commit(
        run_id="r",
        unit=number,
        planned=9,
        completed=8,
        rejected={"broken": 1},
        files=files if number else {},
        seconds={"process": 0.1 * number},
        attempt=f"{number:08x}",
        committed_at="2026-01-01T00:00:00.000+00:00",
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def write(folder: Folder, record: Commit) -> None:
    folder.write(commit_name(record.unit, record.retry), json.dumps(asdict(record)).encode())


def test_the_second_reader_opens_no_record_and_finds_the_same(store: Folder, opened: list[str]) -> None:
    first, files = read_commits(store), named_files(store)
    assert len(opened) == COUNT + 1 and len(first) == COUNT
    opened.clear()
    assert (read_commits(store), named_files(store)) == (first, files)
    assert not opened
    assert (first[3].completed, first[3].rejected, first[3].retry) == (9, {}, 1), "a retry is added to its unit"


def test_new_changed_and_deleted_records_are_seen(store: Folder, opened: list[str]) -> None:
    before = read_commits(store)
    opened.clear()
    changed, added = replace(before[7], attempt="ffffffff"), commit(COUNT)
    store.filesystem.rm_file(store.path(commit_name(5)))
    for record in (changed, added):
        write(store, record)
        if store.is_local:
            os.utime(store.path(commit_name(record.unit)), (1e9, 1e9))
    expected = [changed if one.unit == 7 else one for one in before if one.unit != 5] + [added]
    assert read_commits(store) == expected
    assert sorted(opened) == [commit_name(7), commit_name(COUNT)]


def test_many_new_records_are_added_to_the_index(store: Folder, opened: list[str]) -> None:
    read_commits(store)
    for number in range(COUNT, COUNT + LEAST_RECORDS):
        write(store, commit(number))
    assert len(read_commits(store)) == COUNT + LEAST_RECORDS
    opened.clear()
    read_commits(store)
    assert not opened


@pytest.mark.parametrize("kind", ["cut off", "another file", "another version"])
def test_an_unusable_index_is_said_and_replaced(
    store: Folder, kind: str, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_commits(store)
    data = store.read(INDEX_FILE)
    assert b"index_version" in data
    found = {"cut off": data[:-100], "another file": b"{}", "another version": _other_version(data)}
    store.write(INDEX_FILE, found[kind])
    opened.clear()
    assert read_commits(store) == before and len(opened) == COUNT + 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and INDEX_FILE in said and "cannot be used" in said
    opened.clear()
    assert read_commits(store) == before and not opened
    assert not capsys.readouterr().err


def _other_version(data: bytes) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(data))
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"t2i_foundry.index_version": "2"}), sink)
    written: bytes = sink.getvalue().to_pybytes()
    return written


@pytest.mark.parametrize("error", [PermissionError("read-only"), UserError("the hub takes whole folders")])
def test_a_store_that_cannot_be_written_is_read_as_before(
    store: Folder, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Folder, name: str, data: bytes) -> None:
        raise error

    monkeypatch.setattr(Folder, "write", refuse)
    assert len(read_commits(store)) == len(read_commits(store)) == COUNT
    assert not store.exists(INDEX_FILE)


def test_a_small_store_gets_no_index(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    for number in range(3):
        write(folder, commit(number))
    assert len(read_commits(folder)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["commits"]
