"""Files next to an image: what cannot be taken of them is named, and costs the image only where they are damaged."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from foundry.images.reader import ImageReader
from foundry.images.sources import find_sources, index_sources
from foundry.units.rejection import ImageError
from tests.foundry.images.containers import jpeg, parquet, rows_of, tar_bytes, write


@pytest.mark.parametrize(
    ("data", "left_out"),
    [
        (b"[1]", "the JSON next to the image holds an array, not an object"),
        (b"7", "the JSON next to the image holds a value, not an object"),
        (b'{"caption": "\\ud800", "n": 3}', "caption holds text that is not valid Unicode"),
    ],
)
def test_a_json_that_cannot_be_taken_whole_keeps_its_image_and_is_said(tmp_path: Path, data: bytes, left_out: str) -> None:
    write(tmp_path / "a.jpg", b"1")
    write(tmp_path / "a.json", data)
    write(tmp_path / "a.txt", "an owl")
    (source,) = index_sources(find_sources([str(tmp_path)]))
    (row,) = [row for table in source.tables for row in table.to_pylist()]
    with ImageReader() as reader:
        facts = reader.read_sidecars(row)
    assert facts.alt_text == "an owl"
    assert json.loads(facts.metadata or "") == ({"n": 3} if b"n" in data else {}) | {"left_out": left_out}
    assert source.carried["left_out"] == "VARCHAR"
    assert list(source.passed_over.notes.values()) == [(1, f"{tmp_path / 'a.json'}: {left_out}")]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b'{"a": ', "is not JSON"),
        ("a.json", b"", "is not JSON"),
        ("a.json", b"[" * 100_000, "is not JSON"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.cls", b"\xff", "not UTF-8"),
    ],
)
@pytest.mark.parametrize("is_tar", [True, False])
def test_a_broken_sidecar_is_named(tmp_path: Path, name: str, data: bytes, message: str, *, is_tar: bool) -> None:
    if is_tar:
        write(tmp_path / "x.tar", tar_bytes([("a.jpg", b"1"), (name, data)]))
    else:
        write(tmp_path / "a.jpg", b"1")
        write(tmp_path / name, data)
    (row,) = rows_of(tmp_path)
    with ImageReader() as reader, pytest.raises(ImageError, match=message) as raised:
        reader.read_sidecars(row)
    assert raised.value.reason == "bad_sidecar"
    assert str(tmp_path) in raised.value.message


def test_bytes_in_parquet_that_are_not_unicode_leave_out_their_value_alone(tmp_path: Path) -> None:
    def text(*values: bytes | None) -> pa.Array:
        offsets = np.cumsum([0, *(len(value or b"") for value in values)], dtype=np.int32)
        return pa.StringArray.from_buffers(
            len(values), pa.py_buffer(offsets), pa.py_buffer(b"".join(value or b"" for value in values))
        )

    columns = {"text": text(b"an owl", b"caf\xe9"), "id": text(b"k0", b"\xff"), "n": pa.array([1, 2])}
    parquet(tmp_path / "images" / "a.parquet", {"image": [jpeg(0), jpeg(1)], **columns})
    parquet(tmp_path / "lists" / "b.parquet", {"path": ["0.jpg", "1.jpg"], **columns})
    left_out = "text holds text that is not valid Unicode; id holds text that is not valid Unicode"
    with ImageReader() as reader:
        images = rows_of(tmp_path / "images")
        facts = [reader.read_sidecars(row) for row in images]
    assert [row["stem"] for row in images] == ["k0", "a-1"]
    for found in (
        [(one.alt_text, one.metadata) for one in facts],
        [(row["alt_text"], row["metadata"]) for row in rows_of(tmp_path / "lists")],
    ):
        assert [alt_text for alt_text, _ in found] == ["an owl", None]
        assert [json.loads(metadata or "") for _, metadata in found] == [{"id": "k0", "n": 1}, {"n": 2, "left_out": left_out}]
