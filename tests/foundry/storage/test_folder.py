"""Whole or not at all, and create-if-absent: what the exactness of every run rests on, on a disk and on S3."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from foundry.errors import UserError
from foundry.storage.folder import Folder, store_errors
from foundry.storage.locations import open_binary
from tests.s3 import s3_bucket


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    if request.param == "local":
        yield Folder(str(tmp_path / "run"))
    elif request.param == "memory":
        yield Folder(f"memory://{tmp_path.name}")
    else:
        with s3_bucket() as bucket:
            yield Folder(f"{bucket}/run")


def test_create_is_for_the_first_alone(folder: Folder) -> None:
    assert folder.create("commits/1.json", b"first")
    assert not folder.create("commits/1.json", b"second")
    assert folder.read("commits/1.json") == b"first"


def test_names_are_sorted_files_and_empty_where_there_is_no_folder(folder: Folder) -> None:
    assert folder.names("commits") == []
    for name in ("b", "a"):
        folder.create(f"commits/{name}.json", b"")
    assert folder.names("commits") == ["a.json", "b.json"]
    assert folder.read_many(["commits/a.json", "commits/b.json"]) == {"commits/a.json": b"", "commits/b.json": b""}


def test_write_replaces_and_open_reads_at_any_place(folder: Folder) -> None:
    folder.write("run.json", b"old")
    folder.write("run.json", b"0123456789")
    with folder.open("run.json") as file:
        file.seek(7)
        assert file.read() == b"789"
    assert folder.exists() and folder.exists("run.json") and not folder.exists("other.json")


def test_a_location_opens_the_file_from_anywhere(folder: Folder) -> None:
    folder.write("a/x.bin", b"0123")
    with open_binary(folder.location("a/x.bin")) as file:
        assert file.read() == b"0123"
    assert folder.location("a/x.bin") == f"{folder.location()}/a/x.bin"


def test_of_many_writers_at_once_one_wins(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "run"))
    start = threading.Barrier(8)
    won: list[bytes] = []

    def race(data: bytes) -> None:
        start.wait()
        if folder.create("commits/1.json", data):
            won.append(data)

    threads = [threading.Thread(target=race, args=(bytes([number]) * 100_000,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [folder.read("commits/1.json")] == won
    assert folder.names("commits") == ["1.json"]
    assert len(list((tmp_path / "run" / "commits").iterdir())) == 1, "temporary files stay behind"


def test_a_protocol_that_nobody_knows_is_one_line() -> None:
    with pytest.raises(UserError, match="cannot open nonsense://bucket/run: "):
        Folder("nonsense://bucket/run").exists()


def test_a_store_that_cannot_be_used_is_one_line_and_a_bug_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = Folder(str(tmp_path / "file" / "run"))
    with pytest.raises(UserError, match="cannot work in .*file/run .NotADirectoryError.*permissions"), store_errors(folder):
        folder.create("run.json", b"{}")
    with pytest.raises(KeyError), store_errors(folder):
        raise KeyError("a bug")
    with s3_bucket() as bucket:
        folder = Folder(f"{bucket}-of-nobody/run")
        with pytest.raises(UserError, match="cannot work in s3://.*of-nobody/run .FileNotFoundError"), store_errors(folder):
            folder.create("run.json", b"{}")
