"""What a model is worth to an image: how far images are scaled down before the model's own processor sees them."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.image_processing_utils import select_best_resolution

from captioner.engines.model_source import resolve_model
from foundry.errors import UserError

NEXT_GRID = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION_GRID = [[384 * high, 384 * wide] for high in range(1, 7) for wide in range(1, 7)]


@pytest.mark.parametrize(
    ("config", "side_px"),
    [
        ({"vision_config": {"image_size": 336}}, 336),
        ({"vision_config": {}}, 336),
        ({"vision_config": {"image_size": 336}, "image_grid_pinpoints": NEXT_GRID}, 672),
        ({"vision_config": {"image_size": 384}, "image_grid_pinpoints": ONEVISION_GRID}, 2304),
        (
            {"vision_config": {"image_size": 384}, "image_grid_pinpoints": ONEVISION_GRID, "model_type": "llava_onevision"},
            1152,
        ),
        (
            {
                "vision_config": {"image_size": 384},
                "image_grid_pinpoints": ONEVISION_GRID,
                "vision_aspect_ratio": "anyres_max_4",
            },
            768,
        ),
    ],
)
def test_the_shorter_side_is_what_the_model_can_use(tmp_path: Path, config: dict[str, Any], side_px: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_next"} | config))
    assert resolve_model(str(tmp_path)).image_side_px == side_px


def test_a_smaller_image_goes_to_the_same_grid_of_crops(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llava_next", "vision_config": {"image_size": 336}, "image_grid_pinpoints": NEXT_GRID})
    )
    side_px = resolve_model(str(tmp_path)).image_side_px
    for height, width in [(1500, 2250), (4000, 3000), (2000, 2000), (3000, 1000), (1400, 4200), (900, 1000), (700, 5000)]:
        small = (round(height * side_px / min(height, width)), round(width * side_px / min(height, width)))
        assert select_best_resolution(small, NEXT_GRID) == select_best_resolution((height, width), NEXT_GRID)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="is a LoRA adapter, not a model: .*the adapter to the engine vllm"):
        resolve_model(str(tmp_path))
