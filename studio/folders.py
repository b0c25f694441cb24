"""Folders of the studio: its cache, and names in it."""

import hashlib
import os
from pathlib import Path


def default_cache() -> Path:
    """XDG_CACHE_HOME/t2i-foundry/studio, by default below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "t2i-foundry" / "studio"


def hashed_folder(folder: Path, name: str) -> Path:
    """The folder inside another one for what is called `name`, whatever signs that holds."""
    return folder / hashlib.sha256(name.encode()).hexdigest()[:24]
