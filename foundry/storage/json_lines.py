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


class AppendedLines:
    """Lines that others append to a file, from now on or `from_start`. The file may be shortened meanwhile."""

    def __init__(self, path: Path, *, from_start: bool = False) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() and not from_start else 0

    def lines(self) -> list[str]:
        """The whole lines that came since the last call."""
        if not self._path.exists():
            return []
        self._position = min(self._position, self._path.stat().st_size)
        with self._path.open("rb") as file:
            file.seek(self._position)
            whole = file.read().rpartition(b"\n")[0]
        self._position += len(whole) + 1 if whole else 0
        return whole.decode("utf-8").split("\n") if whole else []


def _whole_lines(data: bytes) -> list[bytes]:
    """The lines that end in a newline. Of JSON, a newline alone ends one: strings may hold other line separators."""
    return [line + b"\n" for line in data.split(b"\n")[:-1]]
