"""Files next to an image: what cannot be taken of them is named, and costs the image only where they are damaged."""

import json
from pathlib import Path

import pytest

from foundry.images.reader import ImageReader
from foundry.images.sources import find_sources, index_sources
from foundry.units.rejection import ImageError
from tests.foundry.images.containers import rows_of, tar_bytes, write


@pytest.mark.parametrize(
    ("data", "left_out"),
    [
        (b"[1]", "the JSON next to the image holds an array and no object"),
        (b"7", "the JSON next to the image holds a value and no object"),
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
