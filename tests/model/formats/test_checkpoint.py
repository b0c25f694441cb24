"""The checkpoint folder: comes back bit for bit, appears whole, and is refused in one line when anything is wrong with it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from foundry.errors import UserError
from model.formats.checkpoint import (
    PIPELINE,
    TRANSFORMER,
    WEIGHTS,
    PartConfig,
    PipelineConfig,
    checkpoint_fingerprint,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from tests.model.tiny_parts import tiny_dit

CONFIG = PipelineConfig(
    objective="rectified_flow",
    objective_settings={"shift": 3.0},
    resolution=32,
    text_encoder=PartConfig(name="somebody/t5", revision="abc", fingerprint="0123456789abcdef"),
    caption_cleaning="thorough",
    licence="CC0-1.0",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "checkpoint", tiny_dit(), CONFIG)


def test_a_checkpoint_comes_back_bit_for_bit(folder: Path) -> None:
    loaded, config = load_checkpoint(folder)
    original = tiny_dit()
    assert config == CONFIG and loaded.config == original.config and not loaded.training
    assert loaded.state_dict().keys() == original.state_dict().keys()
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    stored = load_file(folder / TRANSFORMER / WEIGHTS)
    assert {"blocks.0.attn.qkv.weight", "y_embedder.y_proj.fc1.weight", "t_block.1.weight"} <= stored.keys()  # official names
    assert (folder.stat().st_mode & 0o777) == 0o755


def test_the_dtype_is_the_files_unless_another_is_asked_for(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "bf16", tiny_dit().bfloat16(), CONFIG)
    assert next(load_checkpoint(folder)[0].parameters()).dtype == torch.bfloat16
    assert next(load_checkpoint(folder, dtype=torch.float32)[0].parameters()).dtype == torch.float32


def test_a_fingerprint_tells_trainings_apart_not_dtypes(folder: Path, tmp_path: Path) -> None:
    rounded = save_checkpoint(tmp_path / "bf16", tiny_dit().bfloat16(), CONFIG)
    other = save_checkpoint(tmp_path / "other", tiny_dit(seed=1), CONFIG)
    assert checkpoint_fingerprint(rounded) == checkpoint_fingerprint(folder) != checkpoint_fingerprint(other)


def test_a_folder_with_training_state_keeps_it_and_a_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "step" / "training").mkdir(parents=True)
    (tmp_path / "step" / "training" / "state").write_text("kept")
    save_checkpoint(tmp_path / "step", tiny_dit(), CONFIG)
    assert (tmp_path / "step" / "training" / "state").read_text() == "kept"
    with pytest.raises(UserError, match="already holds a checkpoint"):
        save_checkpoint(tmp_path / "step", tiny_dit(seed=1), CONFIG)
    load_checkpoint(tmp_path / "step")
    assert [path.name for path in tmp_path.iterdir()] == ["step"]  # no leftovers


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("model.formats.checkpoint.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "checkpoint", tiny_dit(), CONFIG)
    assert list(tmp_path.iterdir()) == []


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / TRANSFORMER / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / TRANSFORMER / WEIGHTS)

    return damage


def change_json(name: str, **values: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return damage


def cut_off(folder: Path) -> None:
    weights = folder / TRANSFORMER / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_off, "safetensors is truncated or not safetensors"),
        (lambda folder: (folder / TRANSFORMER / WEIGHTS).unlink(), "safetensors is missing"),
        (lambda folder: (folder / TRANSFORMER / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / PIPELINE).write_text("{"), "pipeline.json is not JSON"),
        (lambda folder: (folder / PIPELINE).write_text("[]"), "expected an object, found list"),
        (change_weights(lambda tensors: tensors.pop("t_block.1.bias")), "1 missing: t_block.1.bias"),
        (change_weights(lambda tensors: tensors.update(more=torch.zeros(1))), "1 unexpected: more"),
        (
            change_weights(lambda tensors: tensors.update({"t_block.1.bias": torch.zeros(3)})),
            r"t_block.1.bias: expected \[288\], found \[3\]",
        ),
        (change_json("transformer/config.json", deepth=3), "unknown key 'deepth'; did you mean 'depth'"),
        (change_json(PIPELINE, licens="x"), "unknown key 'licens'; did you mean 'licence'"),
        (change_json(PIPELINE, resolution="32"), "resolution: expected int, found '32'"),
        (change_json(PIPELINE, vae={"nam": "x"}), "unknown key 'nam'; did you mean 'name'"),
        (change_json(PIPELINE, caption_cleaning="all"), "caption_cleaning: expected one of none, lower, thorough, found 'all'"),
        (change_json(PIPELINE, vae=3), "expected an object for PartConfig, found 3"),
        (change_json(PIPELINE, format_version=99), "expected format_version 1, found 99"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_line(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        load_checkpoint(folder)
    assert len(str(error.value)) < 400


def test_what_is_not_a_checkpoint_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a checkpoint .*, found nothing"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="a folder without pipeline.json"):
        load_checkpoint(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="python -m model.convert --source diffusers --target native"):
        load_checkpoint(tmp_path)
    (tmp_path / "PixArt.pth").write_bytes(b"")
    with pytest.raises(UserError, match="python -m model.convert --source official --target native"):
        load_checkpoint(tmp_path / "PixArt.pth")


def test_of_a_training_it_is_the_newest_whole_one(tmp_path: Path) -> None:
    for images in ("000000064", "000000128", ".000000256.partial"):
        save_checkpoint(tmp_path / "checkpoints" / images, tiny_dit(), CONFIG)
    (tmp_path / "checkpoints" / "000000192" / TRANSFORMER).mkdir(parents=True)
    assert find_checkpoint(tmp_path).name == "000000128"


def test_mini_is_the_shipped_network_of_the_last_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.formats.checkpoint.PRETRAINED", tmp_path)
    with pytest.raises(UserError, match="this copy has no mini"):
        find_checkpoint("mini")
    for seed, stage in enumerate(("pixel", "alignment", "aesthetic")):
        last = save_checkpoint(tmp_path / "dit-mini" / stage, tiny_dit(seed=seed), CONFIG)
    assert checkpoint_fingerprint(find_checkpoint("mini")) == checkpoint_fingerprint(last)
