"""vae-mini: a plain AutoencoderKL that reconstructs scenes it has never seen, in latents of one scale."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from examples.openmoji.composition import draw_scene, render
from examples.openmoji.evaluate_vae import EvaluateVAEConfig, main
from examples.openmoji.reconstruction import psnr
from model.encoders.vae import VAEConfig, load_vae

ROOT = Path(__file__).resolve().parents[2] / "model/pretrained"
VAE = ROOT / "vae-mini"


def _images(count: int) -> torch.Tensor:
    scenes = np.stack([render(draw_scene(seed=77, index=index, split="unseen")) for index in range(count)])
    return torch.from_numpy(scenes).permute(0, 3, 1, 2) / 127.5 - 1


def test_it_is_a_plain_autoencoder_and_small() -> None:
    model = AutoencoderKL.from_pretrained(VAE)
    assert isinstance(model, AutoencoderKL)
    assert {path.name for path in VAE.iterdir()} == {"LICENSE", "config.json", "diffusion_pytorch_model.safetensors"}
    small = [path for folder in ("vae-mini", "t5-mini") for path in (ROOT / folder).iterdir()]
    assert sum(path.stat().st_size for path in small) <= 12e6


def test_it_reconstructs_unseen_scenes() -> None:
    assert psnr(VAE, count=64).mean() >= 32


def test_noise_on_the_latents_costs_little() -> None:
    assert psnr(VAE, count=32, latent_noise=0.1).mean() > psnr(VAE, count=32).mean() - 2


def test_a_scene_is_64_positions_of_unit_variance() -> None:
    vae = load_vae(VAEConfig(name="mini"))
    found = vae.encode(_images(48))
    latents = found.sample(vae.scale, generator=None)
    assert latents.shape == (48, vae.latent_channels, 8, 8) and vae.downsampling == 8
    assert latents.std().item() == pytest.approx(1, abs=0.05) and abs(latents.mean().item()) < 0.25
    # A sample is as good as the mean.
    assert found.log_variance is not None and (found.log_variance / 2).exp().max() < 0.05


def test_the_evaluation_prints_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(EvaluateVAEConfig(count=10)) == 0
    printed = capsys.readouterr().out.splitlines()[-1]
    assert '"num_scenes": 10' in printed and '"psnr_db_worst_decile"' in printed
