"""dit-mini: three small checkpoints, of which the last draws what is asked for, in combinations that training never showed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from examples.openmoji.benchmark import world_judges
from examples.openmoji.prompts import draw_prompts
from model.dit import PRESETS
from model.formats.checkpoint import (
    checkpoint_fingerprint,
    find_checkpoint,
    is_adapted,
    load_checkpoint,
    mini_checkpoint,
    read_own_adapter,
    read_pipeline_config,
)
from model.generation.pipeline import open_pipeline
from model.generation.request import GenerationRequest
from trainer.evaluation.benchmark import Prompt

ROOT = Path(__file__).resolve().parents[2] / "model/pretrained/dit-mini"
STAGES = ("pixel", "alignment", "aesthetic")


def test_it_is_three_stages_in_bf16_with_their_terms() -> None:
    assert {path.name for path in ROOT.iterdir()} == {"LICENSE", *STAGES, "few_steps"} and mini_checkpoint() == ROOT / STAGES[
        -1
    ]
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) <= 48e6
    assert not [path for path in ROOT.rglob("*") if "training" in path.name or "optim" in path.name]
    for stage in STAGES:
        network, pipeline = load_checkpoint(ROOT / stage)
        assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.bfloat16}
        assert network.config.conditioning == ("class" if stage == "pixel" else "text")
        assert (network.config.width, network.config.depth) == (PRESETS["mini"].width, PRESETS["mini"].depth)
        assert "OpenMoji" in pipeline.licence and pipeline.vae.fingerprint


def test_few_steps_are_a_small_lora_of_the_last_stage() -> None:
    folder = find_checkpoint("mini-few-steps")
    adapter, pipeline = read_own_adapter(folder), read_pipeline_config(folder)
    assert is_adapted(folder) and sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 6e6
    assert adapter.base == "mini" and adapter.base_fingerprint == checkpoint_fingerprint(mini_checkpoint())
    assert pipeline.few_steps == adapter.few_steps is not None and "OpenMoji" in pipeline.licence


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("checkpoint", "num_steps"), [("mini", 20), ("mini-few-steps", 4)])
def test_it_draws_held_out_combinations(checkpoint: str, num_steps: int) -> None:
    prompts = [one for one in draw_prompts(count=3, seed=8) if one.held_out]
    request = GenerationRequest(prompts=tuple(one.text for one in prompts), seeds=tuple(range(len(prompts))))
    steps: set[int] = set()
    drawn = open_pipeline(checkpoint)(request, on_step=lambda step, *_: steps.add(step))
    images = [np.asarray(one.image) for one in drawn]
    assert len(steps) == num_steps
    judge = world_judges({one.text: one.asked for one in prompts})["sprites"].load()
    verdicts = judge(images, [Prompt(text=one.text, category=one.category) for one in prompts])
    values = [verdict.values for verdict in verdicts]
    assert len(values) == 18
    assert np.mean([one["object"] for one in values]) > 0.9
    assert np.mean([one["background"] for one in values]) > 0.9
    assert np.mean([one["place"] for one in values if "place" in one]) > 0.9
    assert np.mean([one["all"] for one in values]) > 0.8
