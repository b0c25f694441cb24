"""By what a model's files are known where no hub gives them a revision."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

_WHOLE_BYTES = 1 << 30
"""Up to this size together, files are hashed whole."""
_BLOCKS = 256
_BLOCK_BYTES = 256 << 10
_SUFFIXES = (".json", ".safetensors", ".jinja", ".model")


def folder_fingerprint(folder: Path) -> str:
    """`files_fingerprint` of what a model folder holds: configurations, weights, templates and tokenizers."""
    return files_fingerprint(file for file in folder.iterdir() if file.suffix in _SUFFIXES)


def files_fingerprint(paths: Iterable[Path]) -> str:
    """16 hex digits over names, sizes and contents, by name; above 1 GiB together, over 256 blocks spread over each file.

    A file of 5 GB is then looked at every 20 MB, which meets each large matrix of a model, in a second for 14 GB.
    """
    digest = hashlib.sha256()
    files = [(path, path.stat().st_size) for path in sorted(paths)]
    is_whole = sum(size for _, size in files) <= _WHOLE_BYTES
    for path, size in files:
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for offset, length in _blocks(size, is_whole=is_whole):
                file.seek(offset)
                digest.update(file.read(length))
    return digest.hexdigest()[:16]


def _blocks(size: int, *, is_whole: bool) -> Iterator[tuple[int, int]]:
    """Offsets and lengths in bytes of what is hashed: all of a file in pieces, or blocks from its first byte to its last."""
    if is_whole or size <= _BLOCKS * _BLOCK_BYTES:
        yield from ((offset, _BLOCK_BYTES) for offset in range(0, size, _BLOCK_BYTES))
    else:
        yield from ((block * (size - _BLOCK_BYTES) // (_BLOCKS - 1), _BLOCK_BYTES) for block in range(_BLOCKS))
