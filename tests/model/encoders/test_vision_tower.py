"""A vision tower gives one vector for each cell of a grid, whatever its kind; what is no tower is refused in one line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from foundry.errors import UserError
from model.encoders.vision_tower import MINI, VisionTower, VisionTowerConfig, empty_vision_tower, load_vision_tower
from tests.model.tiny_parts import save_tiny_t5

SIZES = {"hidden_size": 16, "num_hidden_layers": 0, "num_attention_heads": 2, "patch_size": 4, "image_size": 16}
"""No layers: the vector of a patch is of that patch alone."""


def _save(folder: Path, model: PreTrainedModel) -> str:
    torch.manual_seed(0)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    return str(folder)


def _load(name: str) -> VisionTower:
    return load_vision_tower(VisionTowerConfig(name=name, dtype="float32"))


def _models() -> dict[str, PreTrainedModel]:
    small = {**SIZES, "intermediate_size": 32}
    texts = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 9}
    return {
        "dinov2": Dinov2Model(Dinov2Config(**SIZES)),
        "registers": Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES)),
        "clip vision": CLIPVisionModel(CLIPVisionConfig(**small)),
        "clip": CLIPModel(CLIPConfig(vision_config=small, text_config=texts, projection_dim=8)),
        "siglip": SiglipVisionModel(SiglipVisionConfig(**small)),
    }


@pytest.mark.parametrize("kind", ["dinov2", "registers", "clip vision", "clip", "siglip"])
def test_each_kind_of_tower_sees_each_cell_of_any_grid(tmp_path: Path, kind: str) -> None:
    tower = _load(_save(tmp_path / kind, _models()[kind]))
    images = torch.zeros(2, 3, 20, 30)  # a grid of 2 x 3 cells, of 10 px each
    images[1, :, 10:, 20:] = 1
    before, after = tower.features(images, (2, 3))
    assert before.shape == (6, tower.width) and before.dtype == torch.float32
    changed = (after - before).norm(dim=1)
    assert int(changed.argmax()) == 5 and changed[5] > 10 * changed[0]
    empty = empty_vision_tower(VisionTowerConfig(name=tower.name))
    assert (empty.patch_size, empty.width) == (tower.patch_size, tower.width) == (4, 16)
    assert empty.features(torch.empty(1, 3, 8, 12, device="meta"), (2, 3)).shape == (1, 6, 16)


def test_mini_is_the_tower_that_captions_the_small_world() -> None:
    tower = _load("mini")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    model = LlavaForConditionalGeneration.from_pretrained(MINI, dtype=torch.float32)
    expected = model.model.vision_tower(pixel_values=images).last_hidden_state[:, 1:]  # its pixels are (x - 0.5) / 0.5 too
    torch.testing.assert_close(tower.features(images, (8, 8)), expected, atol=1e-5, rtol=1e-4)
    assert tower.fingerprint() == load_vision_tower(VisionTowerConfig(name="mini", dtype="bfloat16")).fingerprint()
    assert empty_vision_tower(VisionTowerConfig(name="mini")).width == tower.width


def test_what_is_not_a_tower_is_refused_in_one_line(tmp_path: Path) -> None:
    dino = tmp_path / "dino"
    _save(dino, Dinov2Model(Dinov2Config(**SIZES)))
    (dino / "preprocessor_config.json").unlink()
    (tmp_path / "empty").mkdir()
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "config.json").write_text('{"model_type": "nothing"}')
    for name, words in [
        (str(tmp_path / "nowhere"), "there is no vision tower in"),
        (str(tmp_path / "empty"), "holds no config.json"),
        (str(strange), "does not belong to a model that transformers can load"),
        (str(save_tiny_t5(tmp_path / "t5")), "has no square patches"),
        (str(dino), "holds no preprocessor_config.json with image_mean"),
    ]:
        for opened in (load_vision_tower, empty_vision_tower):
            with pytest.raises(UserError, match=rf"^[^\n]*{words}[^\n]*$"):
                opened(VisionTowerConfig(name=name))


def test_weights_that_answer_nan_are_named(tmp_path: Path) -> None:
    name = _save(tmp_path / "dino", Dinov2Model(Dinov2Config(**SIZES)))
    weights = tmp_path / "dino" / "model.safetensors"
    tensors = load_file(weights)
    tensors["layernorm.bias"][0] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="answers NaN or infinity to a grey image"):
        _load(name)
