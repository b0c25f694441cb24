"""Reading ahead gives what reading one by one gives, from every container; an extent is fetched once for all who share it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foundry.images.ahead import reading
from foundry.images.ahead.extents import Extent, ExtentCache, extent_of
from foundry.images.ahead.reading import read_ahead
from foundry.images.index import ImageReference
from foundry.images.reader import ImageReader, reference_of
from foundry.units.rejection import ImageError
from tests.foundry.images.containers import CountingFileSystem, rows_of, tar_bytes, write

NUM, GROUP = 24, 8
IMAGES = [bytes([number]) * (1000 + number) for number in range(NUM)]


@pytest.fixture
def cache(tmp_path: Path) -> ExtentCache:
    return ExtentCache(name="run", max_bytes=10**6, parent=str(tmp_path / "node"))


def parquet_rows(path: Path) -> list[dict[str, Any]]:
    pq.write_table(pa.table({"image": IMAGES}), path, row_group_size=GROUP, compression="none")
    extents = [{"extent_start": number // GROUP * GROUP, "extent_length": GROUP} for number in range(NUM)]
    return [row | {"key": row["stem"]} | extent for row, extent in zip(rows_of(path), extents, strict=True)]


def tar_rows(location: str) -> list[dict[str, Any]]:
    """All images of the tar in one extent."""
    rows = rows_of(location)
    start, end = rows[0]["byte_offset"], rows[-1]["byte_offset"] + rows[-1]["byte_length"]
    return [row | {"key": row["stem"], "extent_start": start, "extent_length": end - start} for row in rows]


def data_of(rows: Sequence[dict[str, Any]], cache: ExtentCache | None, *, turn: int = 0) -> list[bytes]:
    """The images, in the order of the rows."""
    found = read_ahead(rows, lambda reader, row: reader.read(reference_of(row)), cache=cache, max_bytes=10**6, turn=turn)
    assert not found.rejected
    return found.images


@pytest.mark.parametrize("turn", [0, 1, 2])
@pytest.mark.parametrize("cached", [True, False])
def test_row_groups_give_the_images_in_the_order_asked_for(tmp_path: Path, cache: ExtentCache, cached: bool, turn: int) -> None:
    rows = parquet_rows(tmp_path / "x.parquet")
    asked = rows[::-3] + rows[::3]
    expected = IMAGES[::-3] + IMAGES[::3]
    assert data_of(asked, cache if cached else None, turn=turn) == expected


def test_a_row_group_is_read_once_for_all_units(tmp_path: Path, cache: ExtentCache, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, read = parquet_rows(tmp_path / "x.parquet"), []
    images = ImageReader.row_group_images

    def counted(reader: ImageReader, uri: str, first_row: int) -> Iterator[pa.Array]:
        read.append(first_row)
        return images(reader, uri, first_row)

    monkeypatch.setattr(ImageReader, "row_group_images", counted)
    units = [data_of(rows[unit::4], cache, turn=unit) for unit in range(4)]
    assert units == [IMAGES[unit::4] for unit in range(4)]
    assert sorted(read) == [0, 8, 16]
    cache.remove()
    assert not cache.folder.exists()


def test_a_remote_tar_is_fetched_by_one_request_for_all_units(cache: ExtentCache) -> None:
    members = ((f"{number:02}.jpg", image) for number, image in enumerate(IMAGES))
    CountingFileSystem.serve({"x.tar": tar_bytes(members)})
    rows = tar_rows("counting://x.tar")
    CountingFileSystem.fetched.clear()
    assert [data_of(rows[unit::4], cache) for unit in range(4)] == [IMAGES[unit::4] for unit in range(4)]
    start = rows[0]["extent_start"]
    assert CountingFileSystem.fetched == [("x.tar", start, start + rows[0]["extent_length"])]


def test_a_local_tar_is_read_where_it_is(tmp_path: Path, cache: ExtentCache) -> None:
    members = ((f"{number:02}.jpg", image) for number, image in enumerate(IMAGES))
    assert data_of(tar_rows(str(write(tmp_path / "x.tar", tar_bytes(members)))), cache) == IMAGES
    assert not cache.folder.exists()


def test_extents_make_room_for_others(tmp_path: Path) -> None:
    cache = ExtentCache(name="run", max_bytes=20_000, parent=str(tmp_path / "node"))  # each of 8 images takes some 8 kB
    assert data_of(parquet_rows(tmp_path / "x.parquet"), cache) == IMAGES
    kept = [path for path in cache.folder.iterdir() if path.suffix != ".lock"]
    assert len(kept) == 2


def test_a_damaged_row_group_rejects_its_own_images_as_reading_alone_does(tmp_path: Path, cache: ExtentCache) -> None:
    path = tmp_path / "x.parquet"
    rows = parquet_rows(path)
    metadata = pq.ParquetFile(path).metadata
    data = bytearray(path.read_bytes())
    start = metadata.row_group(1).column(0).data_page_offset
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)

    def read(reader: ImageReader, row: Mapping[str, Any]) -> bytes:
        return reader.read(reference_of(row))

    found = read_ahead(rows, read, cache=cache, max_bytes=10**6)
    assert found.images == IMAGES[:8] + IMAGES[16:]
    assert [row["key"] for row in found.rejected] == [row["key"] for row in rows[8:16]]
    alone = read_ahead(rows, read, cache=None, max_bytes=10**6)
    assert (found.images, found.rejected) == (alone.images, alone.rejected)


def test_images_above_the_limit_and_empty_ones_are_told_apart(tmp_path: Path, cache: ExtentCache) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [b"", b"12345", b"1234"]}), path)
    rows = [row | {"key": row["stem"], "extent_start": 0, "extent_length": 3} for row in rows_of(path)]
    found = read_ahead(rows, lambda reader, row: reader.read(reference_of(row), max_bytes=4), cache=cache, max_bytes=4)
    assert found.images == [b"1234"] and [row["reason"] for row in found.rejected] == ["empty", "too_many_bytes"]


def test_plans_of_before_have_no_extents(tmp_path: Path) -> None:
    (row, *_) = parquet_rows(tmp_path / "x.parquet")
    assert extent_of(row) == Extent(row["uri"], 0, GROUP, is_rows=True)
    assert extent_of({name: value for name, value in row.items() if not name.startswith("extent")}) is None


def test_no_more_is_read_ahead_than_the_threads_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write(tmp_path / f"{number:03}.jpg", bytes([number])) for number in range(60)]
    fetched: list[str] = []

    def encoded(_: ImageReader, reference: ImageReference, *, max_bytes: int) -> bytes:
        fetched.append(reference.uri)
        return b"1"

    monkeypatch.setattr(ImageReader, "read_encoded", encoded)
    rows = [row | {"key": row["stem"]} for row in rows_of(*paths)]

    def read(reader: ImageReader, row: Mapping[str, Any]) -> int:
        reader.read(reference_of(row))
        return len(fetched)

    counts = read_ahead(rows, read, cache=None, max_bytes=10).images
    assert max(count - done for done, count in enumerate(counts)) <= reading.LOCAL_THREADS + 1


def test_an_image_that_was_not_expected_is_read_too(tmp_path: Path) -> None:
    first, other = (rows_of(write(tmp_path / f"{name}.jpg", name))[0] for name in ("first", "other"))
    with reading.AheadReader(None, max_bytes=10) as reader:
        reader.expect([first])
        assert reader.read(reference_of(other)) == b"other"
        assert reader.read(reference_of(first)) == b"first"
        with pytest.raises(ImageError, match="missing"):
            reader.read(reference_of(first | {"uri": str(tmp_path / "missing.jpg")}))
