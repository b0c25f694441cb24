"""Lists of images: paths, carried columns and their types; an image that a list describes is found once."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foundry.images.decoding import DecodeLimits
from foundry.images.index import IMAGES
from foundry.images.loading import read_images
from foundry.images.sources import find_sources
from foundry.storage.schema import versioned
from tests.foundry.images.containers import carried_by, jpeg, parquet, relatives, rows_of, write


def _write_list(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        return parquet(path, {name: [row[name] for row in rows] for name in rows[0]})
    if path.suffix == ".jsonl":
        return write(path, "\n".join(json.dumps(row) for row in rows) + "\n\n")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    return write(path, "\ufeff" + text.getvalue())


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_lists_carry_their_columns(tmp_path: Path, suffix: str) -> None:
    rows: list[dict[str, Any]] = [
        {"URL": "a/1.jpg", "TEXT": 'an "owl",\nup', "label": 3, "n": 1, "score": 0.5, "ok": True, "code": "007", "note": "x"},
        {"URL": "../2.jpg", "TEXT": "日本", "label": 4, "n": 2, "score": 1.0, "ok": False, "code": "010", "note": None},
        {"URL": "s3://b/k/3.jpg?v=1", "TEXT": None, "label": 5, "n": 3, "score": 1.5, "ok": True, "code": "011", "note": "z"},
        {"URL": "/abs//4.jpg", "TEXT": "", "label": 6, "n": 4, "score": 2.5, "ok": True, "code": "012", "note": "z"},
    ]
    path = _write_list(tmp_path / "in" / f"list{suffix}", rows)
    (source,) = find_sources([str(path)])
    assert (source.kind, source.path_column) == ("list", "URL")
    found = rows_of(path)
    assert [row["uri"] for row in found] == [
        str(tmp_path / "in/a/1.jpg"),
        str(tmp_path / "2.jpg"),
        "s3://b/k/3.jpg?v=1",
        "/abs/4.jpg",
    ]
    assert [row["stem"] for row in found] == ["1", "2", "3", "4"]
    assert [row["relative"] for row in found] == ["a/1.jpg", str(tmp_path / "2.jpg"), "s3://b/k/3.jpg?v=1", "/abs/4.jpg"]
    assert [row["alt_text"] for row in found] == ['an "owl",\nup', "日本", None, None]
    assert [row["class_label"] for row in found] == ["3", "4", "5", "6"]
    metadata = [json.loads(row["metadata"]) for row in found]
    assert [int(one["n"]) for one in metadata] == [1, 2, 3, 4]
    assert [float(one["score"]) for one in metadata] == [0.5, 1.0, 1.5, 2.5]
    assert [one["code"] for one in metadata] == ["007", "010", "011", "012"]
    assert "note" not in metadata[1]
    expected = {"n": "BIGINT", "score": "DOUBLE", "ok": "BOOLEAN", "code": "VARCHAR", "note": "VARCHAR"}
    assert carried_by(source) == expected


def test_nested_columns_are_left_out_and_mixed_ones_are_text(tmp_path: Path) -> None:
    rows = [
        {"file": "1.jpg", "boxes": [1], "n": 1, "big": 2**70},
        {"file": "2.jpg", "n": "two", "m": 1},
        {"file": "3.jpg", "m": 0.5},
    ]
    path = _write_list(tmp_path / "x.jsonl", rows)
    assert carried_by(find_sources([str(path)])[0]) == {"n": "VARCHAR", "big": "VARCHAR", "m": "DOUBLE"}
    assert [json.loads(row["metadata"]) for row in rows_of(path)] == [{"n": 1, "big": 2**70}, {"n": "two", "m": 1}, {"m": 0.5}]


def test_an_image_that_a_list_describes_is_found_once_with_its_columns(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/2.jpg", "a/b/3.jpg", "4.jpg"):
        write(tmp_path / name, b"")
    write(tmp_path / "a" / "1.txt", "from txt")
    write(
        tmp_path / "a" / "metadata.jsonl", '{"file_name": "1.jpg", "text": "one"}\n{"file_name": "b/3.jpg", "text": "three"}\n'
    )
    write(tmp_path / "labels.csv", "filename,label\n./4.jpg,cat\nmissing.jpg,dog\n")
    rows = {row["relative"]: row for row in rows_of(tmp_path)}
    assert sorted(rows) == ["4.jpg", "a/1.jpg", "a/2.jpg", "a/b/3.jpg", "missing.jpg"]
    assert len(rows_of(tmp_path)) == 5
    assert rows["a/1.jpg"]["alt_text"] == "one"
    assert [sidecar["suffix"] for sidecar in rows["a/1.jpg"]["sidecars"]] == [".txt"]
    assert rows["a/b/3.jpg"]["alt_text"] == "three"
    assert rows["4.jpg"]["class_label"] == "cat"


def test_a_list_given_beside_its_folder_counts_as_well(tmp_path: Path) -> None:
    write(tmp_path / "images" / "1.jpg", b"")
    path = write(tmp_path / "list.csv", "path,caption\nimages/1.jpg,an owl\n")
    (row,) = rows_of(tmp_path / "images", path)
    assert row["alt_text"] == "an owl"


def test_lists_and_parquet_without_images_are_passed_over_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "1.jpg", b"")
    write(tmp_path / "log.csv", "step,loss\n1,0.5\n")
    parquet(tmp_path / "n.parquet", {"n": [1]})
    pq.write_table(versioned(IMAGES).empty_table(), tmp_path / "images.parquet")
    assert relatives(tmp_path) == ["1.jpg"]
    write(tmp_path / "in" / "empty.csv", "")
    write(tmp_path / "in" / "latin.csv", b"path\n\xff.jpg\n")
    write(tmp_path / "in" / "x.tar.gz", b"")
    parquet(tmp_path / "in" / "none.parquet", {"image": pa.array([], pa.binary())})
    caplog.clear()
    assert relatives(tmp_path) == ["1.jpg"]
    (record,) = caplog.records
    named = dict(part.rsplit("/", 1)[-1].split(": ", 1) for part in record.getMessage().split("read: ", 1)[1].split("; "))
    no_column = "no column of images or of paths to images"
    assert named.pop("latin.csv").startswith("'utf-8' codec can't decode")
    assert named.pop("empty.csv").startswith("no rows")
    assert record.getMessage().startswith("passed over: 7 files that hold no images to read: ")
    assert named == {
        **dict.fromkeys(("log.csv", "n.parquet", "images.parquet"), no_column),
        "x.tar.gz": "a compressed tar, gunzip it first",
        "none.parquet": "no rows",
    }


def test_a_row_without_a_path_is_a_row_of_its_own_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path / "1.jpg", jpeg(1))
    write(tmp_path / "a.csv", "path,text,n\n,nothing,1\n1.jpg,an owl,2\n")
    write(tmp_path / "b.jsonl", '{"path": null, "n": 3}\n{"path": "2.jpg"}\n')
    rows = rows_of(tmp_path)
    assert [row["relative"] for row in rows] == ["a.csv#1", "1.jpg", "b.jsonl#1", "2.jpg"]
    assert (rows[0]["stem"], rows[0]["alt_text"]) == ("a-1", "nothing")
    read = read_images([{"key": row["relative"], **row} for row in rows], limits=DecodeLimits())
    assert [image.facts["key"] for image in read.images] == ["1.jpg"]
    assert [(row["key"], row["reason"]) for row in read.rejected[:2]] == [
        ("a.csv#1", "unreadable"),
        ("b.jsonl#1", "unreadable"),
    ]
    assert f"row 1 of {tmp_path / 'a.csv'} names no image" in read.rejected[0]["message"]
