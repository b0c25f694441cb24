"""Folders that are pulled into: those of others are left alone, and an update holds what the repository holds."""

from pathlib import Path

import pytest

from foundry.errors import UserError
from tests.hub_server import HubServer, StoredRepository
from tests.publisher.test_hub import NAME, contents, pulled, pushed


def test_a_folder_with_other_files_is_left_alone(hub: HubServer, dataset: Path, tmp_path: Path) -> None:
    pushed(dataset)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="full holds other files"):
        pulled(tmp_path / "full")
    assert contents(tmp_path / "full") == {"mine.txt": b"mine"}
    with pytest.raises(UserError, match="expected a folder, found the file .*mine.txt: give another folder"):
        pulled(tmp_path / "full" / "mine.txt" / "below")


def test_a_folder_of_another_repository_is_left_alone(hub: HubServer, dataset: Path, tmp_path: Path) -> None:
    pushed(dataset)
    hub.repositories["dataset", "me/others"] = other = StoredRepository(private=True, name="dataset me/others")
    other.files["dataset.json"] = (b"{}", False)
    other.commit("others")
    assert pulled(tmp_path / "copy") == 0
    with pytest.raises(UserError, match="copy was pulled from me/owls: give another folder") as refused:
        pulled(tmp_path / "copy", "me/others", kind="dataset")
    assert refused.value.setting == "out"
    assert contents(tmp_path / "copy") == hub.files(NAME)


def test_an_updated_pull_deletes_what_the_hub_no_longer_has(
    hub: HubServer, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pushed(dataset)
    repository, copy = hub.repositories["dataset", NAME], tmp_path / "copy"
    repository.files |= {"samples/old/a.parquet": (b"old", True)}
    repository.commit("more")
    assert pulled(copy) == 0
    assert (copy / "samples/old/a.parquet").is_file()
    (copy / "mine.txt").write_text("mine")
    del repository.files["samples/old/a.parquet"]
    repository.commit("less")
    assert pulled(copy) == 0
    assert "deleted 1 file of an earlier pull" in capsys.readouterr().out
    assert contents(copy) == {**hub.files(NAME), "mine.txt": b"mine"}
    assert not (copy / "samples/old").exists()
