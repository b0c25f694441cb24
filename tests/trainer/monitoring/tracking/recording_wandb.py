"""Stand-in for the package wandb, as far as the client uses it: what it was given is appended to $RECORDED.

Each way in which a client can fail is a word of $RECORDED_FAULT.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

FAULT = os.environ.get("RECORDED_FAULT", "")


def _record(what: str, value: Any) -> None:
    with Path(os.environ["RECORDED"]).open("a") as file:
        file.write(json.dumps({what: value}) + "\n")


class Settings:
    def __init__(self, **settings: Any) -> None:
        assert settings == {"console": "off"}


class Image:
    def __init__(self, path: str) -> None:
        self.path = path


class _Config:
    def update(self, values: dict[str, Any], *, allow_val_change: bool) -> None:
        assert allow_val_change
        _record("facts", values)


class _Run:
    url = None
    offline = os.environ.get("WANDB_MODE") == "offline"

    def __init__(self, folder: str, step: int) -> None:
        self.dir, self.step, self.config = folder, step, _Config()

    def define_metric(self, name: str, **how: Any) -> None:
        assert name in ("images_seen", "*")

    def log(self, values: dict[str, Any]) -> None:
        if FAULT == "dies":
            os._exit(3)
        values = {name: value.path if isinstance(value, Image) else value for name, value in values.items()}
        _record("row", values)

    def finish(self) -> None:
        _record("finish", True)


def init(**given: Any) -> _Run:
    if FAULT == "raises":
        raise ConnectionError(f"no answer to {os.environ['WANDB_API_KEY']} at https://me:password1@host")
    while FAULT == "hangs":
        time.sleep(1)
    path = Path(os.environ["RECORDED"])
    rows = [line for line in path.read_text().splitlines() if '"row"' in line] if path.exists() else []
    session = Path(given["dir"]) / "wandb" / f"offline-run-{len(list(Path(given['dir']).glob('wandb/*')))}"
    (session / "files").mkdir(parents=True)
    _record("init", {name: value for name, value in given.items() if name not in ("config", "settings")})
    _record("config", given["config"])
    return _Run(str(session / "files"), len(rows))
