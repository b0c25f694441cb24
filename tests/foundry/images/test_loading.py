"""Rows in, pixels and rejections out: each row ends in exactly one of the two, in order."""

from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from foundry.images.decoding import DecodeLimits
from foundry.images.index import IMAGES, REJECTED
from foundry.images.loading import read_images
from foundry.images.sources import find_sources, index_source


def index_rows(folder: Path) -> list[dict[str, Any]]:
    """What a plan would hold of a folder."""
    rows = [row for source in find_sources([str(folder)]) for table in index_source(source) for row in table.to_pylist()]
    return [{"key": row["relative"], **row} for row in rows]


def save(path: Path, *, size: tuple[int, int] = (60, 40)) -> None:
    Image.new("RGB", size, "red").save(path)


def test_each_row_becomes_an_image_or_a_rejection(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "d.png"):
        save(tmp_path / name)
    (tmp_path / "a.txt").write_text("a red card")
    (tmp_path / "c.png").write_bytes(b"")
    rows = index_rows(tmp_path)
    (tmp_path / "b.png").unlink()
    read = read_images(rows, limits=DecodeLimits(), target_side_px=20)
    assert [one.facts["key"] for one in read.images] == ["a.png", "d.png"]
    assert [(row["key"], row["reason"]) for row in read.rejected] == [("b.png", "unreadable"), ("c.png", "empty")]
    assert read.images[0].image.pixels.shape == (20, 30, 3) and read.images[0].facts["width"] == 60
    images = pa.Table.from_pylist([one.facts for one in read.images], schema=IMAGES)
    assert images["alt_text"].to_pylist() == ["a red card", None]
    assert len(pa.Table.from_pylist(read.rejected, schema=REJECTED)) == 2


def test_a_row_of_any_table_with_references_is_read_too(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    row = {"key": "a", "uri": str(tmp_path / "a.png")}
    [read] = read_images([row], limits=DecodeLimits()).images
    assert read.facts["content_hash"] and read.image.width == 60
