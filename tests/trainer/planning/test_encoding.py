"""What a plan says of making features: the operations are those that torch counts on the real encoders."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5Config, T5EncoderModel

from model.generation.memory import STABLE_DIFFUSION_VAE, T5_XXL
from trainer.plan import main
from trainer.planning.config import PlanConfig
from trainer.planning.encoding import t5_flops, vae_flops


@pytest.mark.parametrize(("resolution", "latent_channels"), [(256, 4), (512, 16)])
def test_the_vae_costs_what_torch_counts(resolution: int, latent_channels: int) -> None:
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        vae = AutoencoderKL.from_config({**STABLE_DIFFUSION_VAE, "latent_channels": latent_channels})
        vae.encode(torch.empty(1, 3, resolution, resolution))
    assert vae_flops(resolution, latent_channels=latent_channels) == counter.get_total_flops()


def test_t5_costs_what_torch_counts() -> None:
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        T5EncoderModel(T5Config(**T5_XXL))(input_ids=torch.zeros(1, 120, dtype=torch.long))
    assert t5_flops(120) == counter.get_total_flops()


def test_hours_and_dollars_follow_from_the_images(capsys: pytest.CaptureFixture[str]) -> None:
    config = PlanConfig(
        stage="aesthetic", gpu="a100", num_gpus=8, num_images=1_000_000, utilisation=0.5, price=2.0, caption_variants=2
    )
    assert main(replace(config, json=True)) == 0
    first, second, third = (rung["encoding"] for rung in json.loads(capsys.readouterr().out)["rungs"])
    assert first["flops"] == 1e6 * (vae_flops(256, latent_channels=4) + 2 * t5_flops(120))
    assert first["gpu_hours"] == pytest.approx(first["flops"] / (312e12 * 0.5 * 3600))
    assert second["flops"] == 1e6 * vae_flops(512, latent_channels=4)
    assert third["flops_per_caption"] == 0
    assert main(config) == 0
    table = capsys.readouterr().out.partition("Making the features with")[2].splitlines()
    assert table[2].split() == ["aesthetic", "256", "1.0M", "0.27", "1.12", "2.51e+18", "4.5", "0.56", "9"]


def test_a_plan_says_that_it_does_not_know_other_encoders(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(PlanConfig(stage="alignment", gpu="a100", num_gpus=8, caption_width=1024)) == 0
    assert "Making the features: no estimate for other encoders" in capsys.readouterr().out
