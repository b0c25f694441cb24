"""Parquet with image bytes: the column is found, the index reads no image; and the columns that sources carry."""

import io
import json
import random
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foundry.errors import UserError
from foundry.images.reader import ImageReader, reference_of
from foundry.images.sources import find_sources
from tests.foundry.images.containers import CountingFileSystem, carried_by, jpeg, parquet, rows_of, sa1b_json, tar_bytes, write


def test_parquet_reads_the_footer_and_the_keys_but_no_image() -> None:
    buffer = io.BytesIO()
    images = [random.Random(n).randbytes(50_000) for n in range(40)]
    pq.write_table(
        pa.table({"jpg": images, "__key__": [f"k{n}" for n in range(40)], "n": list(range(40))}), buffer, row_group_size=10
    )
    CountingFileSystem.serve({"a/x.parquet": buffer.getvalue()})
    rows = rows_of("counting://a")
    assert [(row["stem"], row["row"], row["member"]) for row in rows] == [(f"k{n}", n, "jpg") for n in range(40)]
    # The footer is read with 64 KiB around it, twice.
    assert CountingFileSystem.fetched_bytes() < 400_000


@pytest.mark.parametrize(
    ("columns", "member", "stems"),
    [
        ({"jpg": [b"1", b"2"]}, "jpg", ["p-0", "p-1"]),
        ({"hash": [b"1", b"2"], "PNG": [b"1", b"2"]}, "PNG", ["p-0", "p-1"]),
        ({"id": [7, None], "picture": [b"1", b"2"]}, "picture", ["7", "p-1"]),
        ({"path": ["a", "b"], "content": [b"1", b"2"]}, "content", ["p-0", "p-1"]),
        ({"Key": ["x/y", ""], "image": [b"1", b"2"]}, "image", ["x/y", "p-1"]),
        ({"photo": [{"bytes": b"1", "path": "d/one.jpg"}, {"bytes": b"2", "path": None}]}, "photo", ["one", "p-1"]),
        ({"photo": [{"bytes": b"1", "path": "d/one.jpg"}] * 2, "image_id": ["i", "j"]}, "photo", ["i", "j"]),
    ],
)
def test_the_image_column_is_found_by_name_then_by_type(
    tmp_path: Path, columns: dict[str, Any], member: str, stems: list[str]
) -> None:
    rows = rows_of(parquet(tmp_path / "p.parquet", columns))
    assert [row["member"] for row in rows] == [member, member]
    assert [row["stem"] for row in rows] == stems
    assert [row["relative"] for row in rows] == ["p.parquet#0", "p.parquet#1"]


def test_parquet_of_the_datasets_library(tmp_path: Path) -> None:
    for n in range(3):
        write(tmp_path / "raw" / f"img_{n}.jpg", jpeg(n))
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["owl", "cat"]), "n": datasets.Value("int32")}
    )
    columns = {"image": [str(tmp_path / "raw" / f"img_{n}.jpg") for n in range(3)], "label": [0, 1, 0], "n": [1, 2, 3]}
    (tmp_path / "out").mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(tmp_path / "out" / "train.parquet"))
    (source,) = find_sources([str(tmp_path / "out")])
    assert source.kind == "parquet"
    assert [row["stem"] for row in rows_of(tmp_path / "out")] == ["img_0", "img_1", "img_2"]
    assert carried_by(source) == {"n": "BIGINT"}


def test_carried_columns_of_tars_and_folders_come_from_their_first_jsons(tmp_path: Path) -> None:
    jsons = [b'{"caption": "x", "width": 5, "score": 1, "tags": ["a"]}', b'{"width": 6, "score": 0.5, "safe": true}', b"broken"]
    members = [
        (f"{n}{suffix}", data) for n, json_data in enumerate(jsons) for suffix, data in ((".jpg", b"1"), (".json", json_data))
    ]
    write(tmp_path / "t" / "x.tar", tar_bytes(members))
    for name, data in members:
        write(tmp_path / "f" / name, data)
    for folder in ("t", "f"):
        (source,) = find_sources([str(tmp_path / folder)])
        assert carried_by(source) == {"width": "BIGINT", "score": "DOUBLE", "safe": "BOOLEAN"}


def test_carried_columns_of_sa1b(tmp_path: Path) -> None:
    path = write(tmp_path / "sa.tar", tar_bytes([("./sa_1.jpg", b"1"), ("./sa_1.json", sa1b_json(1, [2]))]))
    expected = {"image_id": "BIGINT", "width": "BIGINT", "height": "BIGINT", "file_name": "VARCHAR"}
    assert carried_by(find_sources([str(path)])[0]) == expected


def test_two_columns_of_one_name_are_an_error_and_odd_names_are_carried(tmp_path: Path) -> None:
    names = ["image", "a", "a.b", "image.bytes", "", "A"]
    values = [pa.array([jpeg(1)]), *(pa.array([name]) for name in names[1:])]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_arrays(values, names=names), path)
    (row,) = rows_of(path)
    with ImageReader() as reader:
        facts = reader.read_sidecars(row)
        assert reader.read(reference_of(row)) == jpeg(1)
    assert json.loads(facts.metadata or "") == {name: name for name in names[1:] if name}
    pq.write_table(pa.Table.from_arrays(values, names=["image", "a", "a", "b", "", "A"]), path)
    with pytest.raises(UserError, match=r"x.parquet has 2 columns named 'a'; rename all but one"):
        rows_of(tmp_path)
