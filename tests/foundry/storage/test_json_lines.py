"""JSON Lines: a line that a kill cut off costs that row alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from foundry.storage.json_lines import open_rows, read_rows

WHOLE = b'{"a": 1}\n{"text": "one\xe2\x80\xa8line"}\n'


@pytest.mark.parametrize("read", [read_rows, open_rows])
@pytest.mark.parametrize("cut_off", [b"", b'{"a": 2', b'{"a": 2}', b"\xc3"])
def test_a_line_that_was_cut_off_is_no_row(tmp_path: Path, cut_off: bytes, read: Callable[[Path], object]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(WHOLE + cut_off)
    assert read(path) == [{"a": 1}, {"text": "one\u2028line"}]
    assert path.read_bytes() == (WHOLE if read is open_rows else WHOLE + cut_off)


@pytest.mark.parametrize("read", [read_rows, open_rows])
def test_a_missing_file_has_no_rows(tmp_path: Path, read: Callable[[Path], object]) -> None:
    assert read(tmp_path / "rows.jsonl") == []
    assert not list(tmp_path.iterdir())
