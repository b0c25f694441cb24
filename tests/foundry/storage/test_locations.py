"""Paths and URLs: taken apart, put together, and every store's failure in one line."""

import pytest

from foundry.errors import UserError
from foundry.storage import locations
from tests.foundry.images.containers import CountingFileSystem, rows_of


@pytest.mark.parametrize(
    ("folder", "name", "location"),
    [
        ("/", "a.jpg", "/a.jpg"),
        ("/x", "a.jpg", "/x/a.jpg"),
        ("s3://bucket", "a.jpg", "s3://bucket/a.jpg"),
        ("memory:///", "a.jpg", "memory:///a.jpg"),
        ("counting://", "a.jpg", "counting://a.jpg"),
    ],
)
def test_a_location_is_taken_apart_as_it_is_put_together(folder: str, name: str, location: str) -> None:
    assert locations.join(folder, name) == location
    assert locations.parent(location) == folder
    assert locations.relative_to(location, folder) == name
    assert locations.relative_to(location, f"{folder}other") == location


@pytest.mark.parametrize(
    ("path", "folder", "location"),
    [
        ("a/./b//c.jpg", "/x", "/x/a/b/c.jpg"),
        ("../c.jpg", "/x/y", "/x/c.jpg"),
        ("/c.jpg", "/x", "/c.jpg"),
        ("file:///c.jpg", "/x", "/c.jpg"),
        ("../c.jpg", "s3://b/x", "s3://b/c.jpg"),
        ("https://h/c.jpg?a=b", "s3://b/x", "https://h/c.jpg?a=b"),
        ("c.jpg", "memory:///x", "memory:///x/c.jpg"),
        ("/local/c.jpg", "s3://b/x", "/local/c.jpg"),
    ],
)
def test_paths_in_a_list_are_relative_to_its_folder(path: str, folder: str, location: str) -> None:
    assert locations.locate(path, folder) == location


def test_a_store_whose_errors_are_its_own_is_still_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentialsError(Exception):
        """Like botocore's: no OSError."""

    def fail(*_: object, **__: object) -> None:
        raise NoCredentialsError("Unable to locate\ncredentials")

    CountingFileSystem.serve({"data/x.tar": b"x"})
    for method in ("ls", "_open", "info"):
        monkeypatch.setattr(CountingFileSystem, method, fail)
        with pytest.raises(UserError, match=r"cannot read counting://data.*: Unable to locate credentials; check"):
            rows_of("counting://data/x.tar" if method == "_open" else "counting://data")
        monkeypatch.undo()
