"""dit-mini: three small checkpoints, of which the last draws what is asked for, in combinations that training never showed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from examples.openmoji.benchmark import world_judges
from examples.openmoji.prompts import draw_prompts
from model.dit import PRESETS
from model.formats.checkpoint import load_checkpoint, mini_checkpoint
from model.generation.pipeline import open_pipeline
from model.generation.request import GenerationRequest
from trainer.evaluation.benchmark import Prompt

ROOT = Path(__file__).resolve().parents[2] / "model/pretrained/dit-mini"
STAGES = ("pixel", "alignment", "aesthetic")


def test_it_is_three_stages_in_bf16_with_their_terms() -> None:
    assert {path.name for path in ROOT.iterdir()} == {"LICENSE", *STAGES} and mini_checkpoint() == ROOT / STAGES[-1]
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) <= 45e6
    assert not [path for path in ROOT.rglob("*") if "training" in path.name or "optim" in path.name]
    for stage in STAGES:
        network, pipeline = load_checkpoint(ROOT / stage)
        assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.bfloat16}
        assert network.config.conditioning == ("class" if stage == "pixel" else "text")
        assert (network.config.width, network.config.depth) == (PRESETS["mini"].width, PRESETS["mini"].depth)
        assert "OpenMoji" in pipeline.licence and pipeline.vae.fingerprint


@pytest.mark.timeout(300)
def test_it_draws_held_out_combinations() -> None:
    prompts = [one for one in draw_prompts(count=3, seed=8) if one.held_out]
    request = GenerationRequest(prompts=tuple(one.text for one in prompts), seeds=tuple(range(len(prompts))))
    images = [np.asarray(one.image) for one in open_pipeline("mini")(request)]
    judge = world_judges({one.text: one.asked for one in prompts})["sprites"].load()
    verdicts = judge(images, [Prompt(text=one.text, category=one.category) for one in prompts])
    values = [verdict.values for verdict in verdicts]
    assert len(values) == 18
    assert np.mean([one["object"] for one in values]) > 0.9
    assert np.mean([one["background"] for one in values]) > 0.9
    assert np.mean([one["place"] for one in values if "place" in one]) > 0.9
    assert np.mean([one["all"] for one in values]) > 0.8
