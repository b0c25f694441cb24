"""History of drawings: a PNG for each image, which says what it was drawn from, and a line for each in drawings.jsonl."""

import json
import re
import secrets
import threading
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foundry.storage.folder import Folder, store_errors
from foundry.storage.json_lines import open_rows, read_rows
from model.generation.image_files import png_bytes
from studio.drawing.painter import Drawn, DrawSettings

FOLDER = "drawings"
RECORD = "drawings.jsonl"
_NAME = re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}\.png")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """An image of the history."""

    name: str
    drawn_at: str
    checkpoint: str
    drawn_prompt: str
    remark: str
    settings: DrawSettings


class History:
    """The drawings in a folder, the newest first. Several studios may write to the same folder."""

    def __init__(self, out: Path) -> None:
        self.folder = out / FOLDER
        self._lock = threading.Lock()

    def add(self, drawn: Drawn) -> Drawing:
        """Writes an image and its line. Raises UserError where the folder cannot be written."""
        now = datetime.now(UTC)
        drawing = Drawing(
            name=f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}.png",
            drawn_at=now.isoformat(timespec="seconds"),
            checkpoint=drawn.checkpoint,
            drawn_prompt=drawn.drawn_prompt,
            remark=drawn.remark,
            settings=drawn.settings,
        )
        folder = Folder(str(self.folder))
        with store_errors(folder), self._lock:
            folder.create(drawing.name, png_bytes(drawn.image, drawn.values))
            append_row(self.folder / RECORD, asdict(drawing))
        return drawing

    def newest(self, *, number: int, before: str = "") -> list[Drawing]:
        """Drawings whose images are there; `before` is the name of the one that the list comes after."""
        rows = [_drawing(row) for row in reversed(read_rows(self.folder / RECORD))]
        names = [one.name for one in rows]
        start = names.index(before) + 1 if before in names else 0
        return [one for one in rows[start:] if (self.folder / one.name).is_file()][:number]

    def find(self, name: str) -> Drawing | None:
        """The drawing of this name."""
        return next((_drawing(row) for row in read_rows(self.folder / RECORD) if row["name"] == name), None)

    def file(self, name: str) -> Path | None:
        """The file of a drawing; None for whatever is none."""
        path = self.folder / name
        return path if _NAME.fullmatch(name) and path.is_file() else None


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Appends a line to a file of JSON lines, after what a kill cut off is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    open_rows(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _drawing(row: dict[str, Any]) -> Drawing:
    return Drawing(**{**row, "settings": DrawSettings(**row["settings"])})
