"""By what a model's files are known where no hub gives them a revision."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

_EDGE_BYTES = 1 << 20
_SUFFIXES = (".json", ".safetensors", ".jinja", ".model")


def folder_fingerprint(folder: Path) -> str:
    """`files_fingerprint` of what a model folder holds: configurations, weights, templates and tokenizers."""
    return files_fingerprint(file for file in folder.iterdir() if file.suffix in _SUFFIXES)


def files_fingerprint(paths: Iterable[Path]) -> str:
    """16 hex digits over names, sizes and the first and last MiB of each file, sorted by name: a second for 14 GB."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE_BYTES))
            file.seek(max(0, size - _EDGE_BYTES))
            digest.update(file.read())
    return digest.hexdigest()[:16]
