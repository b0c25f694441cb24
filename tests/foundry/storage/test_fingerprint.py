"""Two models have two fingerprints, wherever in their files they differ."""

from pathlib import Path

import pytest

from foundry.storage import model_files as fingerprint
from foundry.storage.model_files import files_fingerprint, folder_fingerprint

SIZE = 1 << 20


@pytest.mark.parametrize("whole_bytes", [1 << 30, 0], ids=["small, read whole", "large, read in blocks"])
def test_a_change_anywhere_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_bytes: int) -> None:
    monkeypatch.setattr(fingerprint, "_WHOLE_BYTES", whole_bytes)
    monkeypatch.setattr(fingerprint, "_BLOCKS", 16)
    monkeypatch.setattr(fingerprint, "_BLOCK_BYTES", 4096)
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(SIZE))
    found = {folder_fingerprint(tmp_path)}
    assert folder_fingerprint(tmp_path) in found
    matrix = SIZE // 15
    for start in (0, SIZE // 3, SIZE // 2, SIZE - matrix):
        changed = bytearray(SIZE)
        changed[start : start + matrix] = b"\1" * matrix
        path.write_bytes(changed)
        found.add(folder_fingerprint(tmp_path))
    path.write_bytes(bytes(SIZE + 1))
    found.add(folder_fingerprint(tmp_path))
    assert len(found) == 6


def test_a_single_byte_of_a_small_model_counts_and_other_files_do_not(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(3 * SIZE))
    before = folder_fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    assert folder_fingerprint(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(bytes(SIZE) + b"\1" + bytes(2 * SIZE - 1))
    assert folder_fingerprint(tmp_path) != before == files_fingerprint([_zeros(tmp_path)])


def _zeros(folder: Path) -> Path:
    path = folder / "other" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(bytes(3 * SIZE))
    return path
