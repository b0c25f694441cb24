"""Many sources are read at once, and nothing of that shows in what comes out."""

import threading
from pathlib import Path

import pytest

from foundry.errors import UserError
from foundry.images import sources as indexing
from foundry.images.sources import Source, find_sources, index_source, index_sources
from foundry.storage.file_kinds import PassedOver
from tests.foundry.images.containers import jpeg, tar_bytes, write


def _tars(folder: Path, count: int) -> list[Source]:
    for number in range(count):
        members = [(f"{number:02}-{n}.jpg", jpeg(n)) for n in range(3)] + [(f"{number:02}-0.json", b'{"n": 1}')]
        write(folder / f"{number:02}.tar", tar_bytes([*members, (f"._{number}.jpg", b"")]))
    return find_sources([str(folder)])


def test_the_order_is_that_of_the_sources(tmp_path: Path) -> None:
    sources = _tars(tmp_path, 3 * indexing.THREADS)
    found = list(index_sources(sources))
    stems = [stem for source in found for table in source.tables for stem in table["stem"].to_pylist()]
    assert stems == [f"{number:02}-{n}" for number in range(3 * indexing.THREADS) for n in range(3)]
    assert {tuple(source.carried.items()) for source in found} == {(("n", "BIGINT"),)}
    assert sum(source.passed_over.files for source in found) == 3 * indexing.THREADS


def test_several_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(indexing.THREADS)

    def index_together(source: Source, *, passed_over: PassedOver, types: dict[str, str]) -> object:
        together.wait(timeout=20)  # breaks where fewer threads than that are here at one time
        return index_source(source, passed_over=passed_over, types=types)

    sources = _tars(tmp_path, indexing.THREADS)
    monkeypatch.setattr(indexing, "index_source", index_together)
    assert len(list(index_sources(sources))) == indexing.THREADS


def test_of_two_damaged_ones_the_first_in_order_is_named(tmp_path: Path) -> None:
    sources = _tars(tmp_path, 8)
    for name in ("03.tar", "05.tar"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[:600])
    with pytest.raises(UserError, match=r"03\.tar"):
        list(index_sources(sources))
