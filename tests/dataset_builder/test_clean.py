"""What killed jobs left over: attempts that lost, unfinished files; never what a commit names or a job may still commit."""

import os
import time
from pathlib import Path

import fsspec
import pytest

from dataset_builder import clean
from dataset_builder.runs.leftovers import delete, find_leftovers
from foundry.command_line import run_command
from foundry.storage.folder import Folder
from foundry.units.commits import named_files
from tests.dataset_builder.small_run import SmallRun

LOST, WAITING = "captions/00000000-deadbeef.parquet", "captions/00000002-deadbeef.parquet"
"""Attempts at a unit that is committed, and at one that is not."""
UNFINISHED = "images/.index.parquet.0123456789abcdef"
IN_A_FOLDER = "features/.000000000008.0123456789abcdef/weights.safetensors"


def _age(path: Path, hours: float) -> None:
    then = time.time() - 3600 * hours
    os.utime(path, (then, then))


def _left_over(root: Path, *, hours: float = 48) -> Folder:
    run = SmallRun().write(Folder(str(root)))
    for name in (LOST, WAITING, UNFINISHED, IN_A_FOLDER):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1234")
        _age(path, hours)
    return run


def _clean(*argv: str) -> int:
    return run_command(
        clean.CleanConfig, clean.main, prog="python -m dataset_builder.clean", example="", argv=argv, positional=["folder"]
    )


def test_it_lists_and_then_deletes_what_nobody_names_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _left_over(tmp_path / "runs" / "a")
    before = {str(path) for path in tmp_path.rglob("*") if path.is_file()}
    assert _clean(str(tmp_path / "runs")) == 0
    said = capsys.readouterr()
    assert said.out.count("4 /") == 3 and "3 files, 0.0 MB left over; delete them with --delete" in said.out + said.err
    assert "1 attempt at units that are not done yet kept: finish the job first" in said.out + said.err
    assert {str(path) for path in tmp_path.rglob("*") if path.is_file()} == before
    assert _clean(str(tmp_path / "runs"), "--delete") == 0
    gone = before - {str(path) for path in tmp_path.rglob("*") if path.is_file()}
    assert gone == {run.path(name) for name in (LOST, UNFINISHED, IN_A_FOLDER)}
    assert not Path(run.path(IN_A_FOLDER)).parent.exists()
    assert named_files(run) and all(Path(path).is_file() for path in named_files(run))
    assert find_leftovers(run, older_than_s=0).files == {}


def test_what_is_young_is_kept_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _left_over(tmp_path, hours=2)
    assert _clean(str(tmp_path), "--delete") == 0
    assert "3 files younger than 24 h kept: a job may be writing them" in "".join(capsys.readouterr())
    assert Path(run.path(LOST)).exists()
    assert _clean(str(tmp_path), "--delete", "--older_than_h", "1") == 0
    assert not Path(run.path(LOST)).exists() and Path(run.path(WAITING)).exists()


def test_a_file_that_the_commit_of_another_store_names_is_kept(tmp_path: Path) -> None:
    """As the captions that two resolutions of features share: one store's commits name files of the other."""
    small, large = (SmallRun().write(Folder(str(tmp_path / name))) for name in ("256", "512"))
    record = Path(large.path("commits/00000000.json"))
    record.write_text(record.read_text().replace('"path": "captions/', '"path": "../256/captions/'))
    shared = next(path for path in named_files(large) if "/256/captions/" in path)
    Path(shared).write_bytes(b"shared")
    assert shared not in find_leftovers(Folder(str(tmp_path)), older_than_s=0).files
    assert small.exists("captions")


def test_folders_on_object_storage_are_cleaned_alike(tmp_path: Path) -> None:
    local = _left_over(tmp_path)
    memory = fsspec.filesystem("memory")
    memory.put(local.root, "/left-over/run", recursive=True)
    folder = Folder("memory://left-over/run")
    found = find_leftovers(folder, older_than_s=0)
    assert {path.removeprefix(folder.root).lstrip("/") for path in found.files} == {LOST, UNFINISHED, IN_A_FOLDER}
    assert find_leftovers(folder, older_than_s=3600).num_young == 3
    delete(folder, found)
    assert find_leftovers(folder, older_than_s=0).files == {} and found.num_uncommitted == 1


def test_a_folder_that_is_not_there_gets_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _clean(str(tmp_path / "none")) == 2
    assert "there is no folder" in capsys.readouterr().err
