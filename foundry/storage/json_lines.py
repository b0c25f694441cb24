"""JSON Lines files that a program appends to and may be killed in the middle of: each whole line is a row."""

import json
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, none for a missing one; a last line that a kill cut off is ignored."""
    return [json.loads(line) for line in _whole_lines(path.read_bytes())] if path.exists() else []


def open_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that is about to be appended to: removes a last line that a kill cut off."""
    if not path.exists():
        return []
    with path.open("r+b") as file:
        lines = _whole_lines(file.read())
        file.truncate(sum(map(len, lines)))
    return [json.loads(line) for line in lines]


def _whole_lines(data: bytes) -> list[bytes]:
    """The lines that end in a newline. Of JSON, a newline alone ends one: strings may hold other line separators."""
    return [line + b"\n" for line in data.split(b"\n")[:-1]]
