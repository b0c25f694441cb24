"""Folder of a benchmark's results: started with settings, and refused with others, so that a killed benchmark resumes in it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundry.errors import UserError
from foundry.storage.folder import new_file

_SETTINGS = "settings.json"


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings, plain JSON, into the folder. Raises UserError if it holds the results of others."""
    path, plain = folder / _SETTINGS, json.loads(json.dumps(settings))
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with new_file(path) as partial:
            partial.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    if differing := [name for name, value in plain.items() if found.get(name) != value]:
        raise UserError(
            f"{folder} was started with another {', '.join(differing)}: give another folder, or the settings of {path}",
            setting="out",
        )
