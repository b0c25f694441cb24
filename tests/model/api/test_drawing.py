"""Images in one call: those of the pipeline, from a checkpoint or an open pipeline."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foundry.errors import UserError
from model import GenerationRequest, RuntimeConfig, SamplingConfig, draw, make_grid, open_pipeline
from tests.model.tiny_parts import SIDE_PX, save_tiny_checkpoint

PROMPTS = ("a red owl", "a key on the left")
SETTINGS: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 2.0, "height": SIDE_PX, "width": SIDE_PX}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def test_images_are_those_of_the_pipeline(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = open_pipeline(checkpoint, runtime=RuntimeConfig(dtype="float32"))
    request = GenerationRequest(
        prompts=PROMPTS,
        num_images_per_prompt=2,
        seed=5,
        height=SIDE_PX,
        width=SIDE_PX,
        sampling=SamplingConfig(num_inference_steps=2, guidance_scale=2.0),
    )
    expected = [np.asarray(one.image) for one in pipeline(request)]
    drawn = draw(PROMPTS, checkpoint=pipeline, num_images_per_prompt=2, seed=5, **SETTINGS)
    assert len(drawn) == 4 and all(map(np.array_equal, map(np.asarray, drawn), expected))
    alone = draw(PROMPTS[1], checkpoint=checkpoint, seed=6, runtime=RuntimeConfig(dtype="float32"), **SETTINGS)
    assert np.abs(np.asarray(alone[0], int) - expected[3]).max() <= 1, "an image depends on its prompt and seed alone"
    assert make_grid(drawn, columns=2).size == (2 * SIDE_PX + 4, 2 * SIDE_PX + 4)
    assert capsys.readouterr().out == ""


def test_prompts_that_are_cut_are_said(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw("a red owl on a key " * 40, checkpoint=checkpoint, **SETTINGS)
    assert "1 prompt has more than" in capsys.readouterr().out
    draw(("", "a red owl"), checkpoint=checkpoint, **SETTINGS)
    assert "warning: 1 of 2 prompts without text: the network draws any subject" in capsys.readouterr().out


def test_what_does_not_fit_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    pipeline = open_pipeline(checkpoint)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"checkpoint": tmp_path}, "expected a checkpoint"),
        ({"checkpoint": checkpoint, "num_images_per_prompt": 0}, "num_images_per_prompt: expected 1 or more"),
        ({"checkpoint": checkpoint, "lora": "adapter:much"}, "lora: expected PATH or PATH:SCALE"),
        (
            {"checkpoint": checkpoint, "num_inference_step": 3},
            r"draw\(\) has no option num_inference_step: did you mean num_",
        ),
        ({"checkpoint": checkpoint, "foo": 3}, r"draw\(\) has no option foo: its options are prompts, checkpoint, "),
        ({"checkpoint": pipeline, "lora": "adapter"}, "lora and runtime belong to open_pipeline"),
    ]
    for options, message in cases:
        with pytest.raises(UserError, match=message):
            draw("a red owl", **options)
