"""What each start of a run was made with: starts/<time>.json in its folder. None of it enters the run_id.

A run may go on with another version of a library, or on other machines; whoever compares captions afterwards can see where.
"""

import json
import platform
import secrets
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version

from captioner.config import CaptionConfig
from foundry.storage.folder import Folder, usable

_LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers", "ray", "spacy", "pyarrow", "pillow", "numpy")


def record_start(run: Folder, config: CaptionConfig, *, dtype: str, cluster: str, on_gpus: bool) -> None:
    """Writes what is known before the first unit. `dtype` and `on_gpus` are what `auto` came to. Raises UserError."""
    now = datetime.now(UTC)
    record = {
        "started_at": now.isoformat(timespec="seconds"),
        "argv": sys.argv,
        "config": asdict(config),
        "dtype": dtype,
        "device": "GPU" if on_gpus else "CPU",
        "cluster": cluster,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
    }
    with usable(run):
        run.create(f"starts/{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}.json", json.dumps(record, indent=1).encode())
