"""The denoising error is one figure for both objectives: zero for the truth, equal for equal guesses, at equal noise levels."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.recipes.denoising import BANDS, denoising_error, denoising_loss, fixed_times, level_at, levels_of
from model.diffusion import Diffusion, Objective, RectifiedFlow
from model.formats.checkpoint import PartConfig, PipelineConfig, save_checkpoint
from tests.model.tiny_networks import TEXT, random_network
from tests.trainer.tiny_training import CAPTION_WIDTH, write_store

OBJECTIVES: list[Objective] = [Diffusion(), RectifiedFlow(shift=3.0)]
TIMES = torch.tensor([0.02, 0.3, 0.5, 0.7, 0.98])
LATENTS, NOISE = (torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))


class Guess:
    """A network that takes the latents for something, and says so in its objective's terms."""

    def __init__(self, objective: Objective, latents: Tensor) -> None:
        self.objective, self.latents = objective, latents

    def __call__(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        level = level_at(self.objective, timesteps)
        noise = (noisy - level.signal * self.latents) / level.noise
        if isinstance(self.objective, Diffusion):
            return torch.cat([noise, torch.zeros_like(noise)], dim=1)  # and a variance, which does not count
        return noise - self.latents


@pytest.mark.parametrize("objective", OBJECTIVES, ids=["diffusion", "flow"])
def test_the_ground_truth_has_no_error_and_a_guess_that_of_its_latents_or_its_noise(objective: Objective) -> None:
    assert denoising_error(objective, Guess(objective, LATENTS), LATENTS, noise=NOISE, times=TIMES) == pytest.approx(
        0, abs=1e-6
    )
    found = denoising_error(objective, Guess(objective, LATENTS + 0.5), LATENTS, noise=NOISE, times=TIMES)
    level = levels_of(objective, TIMES)
    ratio = (level.signal / level.noise).flatten()
    assert ratio[0] > 1 > ratio[-1]
    expected = 0.25 * torch.minimum(torch.ones(5), ratio**2)  # an error of 0.5 in the latents is one of 0.5 s / n in the noise
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_equal_guesses_have_equal_errors_whatever_the_objective() -> None:
    wrong = LATENTS + torch.randn(LATENTS.shape, generator=torch.Generator().manual_seed(3))
    errors = [denoising_error(one, Guess(one, wrong), LATENTS, noise=NOISE, times=TIMES) for one in OBJECTIVES]
    torch.testing.assert_close(errors[0], errors[1], rtol=1e-3, atol=1e-5)


def test_levels_are_those_of_whole_steps_near_the_wanted_ones() -> None:
    diffusion, flow = (levels_of(one, TIMES) for one in OBJECTIVES)
    assert torch.equal(diffusion.timesteps, diffusion.timesteps.round())
    torch.testing.assert_close(diffusion.signal / diffusion.noise, flow.signal / flow.noise, rtol=1e-3, atol=0)
    torch.testing.assert_close(flow.times, TIMES, rtol=0, atol=0.02)
    torch.testing.assert_close(flow.timesteps, 1000 * flow.times)
    assert math.isclose(float(diffusion.signal[2] ** 2 + diffusion.noise[2] ** 2), 1, rel_tol=1e-5)


def test_few_samples_cover_all_levels() -> None:
    times = sorted(fixed_times(range(20)).tolist())
    assert 0.02 <= times[0] < 0.08 and 0.92 < times[-1] <= 0.98
    assert max(after - before for before, after in itertools.pairwise(times)) < 0.11
    assert fixed_times([7]) == fixed_times(range(20))[7]


@pytest.mark.parametrize("objective", ["diffusion", "rectified_flow"])
def test_the_loss_of_a_checkpoint_is_the_mean_over_the_validation_split(tmp_path: Path, objective: str) -> None:
    features = write_store(tmp_path / "features")
    network = random_network(TEXT, caption_width=CAPTION_WIDTH, sample_size=8, learned_variance=objective == "diffusion")
    vae, text_encoder = (PartConfig(name="nowhere", fingerprint=fingerprint) for fingerprint in "vt")
    pipeline = PipelineConfig(objective=objective, resolution=16, vae=vae, text_encoder=text_encoder)
    save_checkpoint(tmp_path / "network", network, pipeline)
    found = denoising_loss(str(tmp_path / "network"), str(features), num_images=12, caption="dense")
    assert len(found.bands) == BANDS and all(math.isfinite(band) for band in found.bands)
    assert found.loss == pytest.approx(sum(found.bands) / BANDS, rel=0.2) and found.loss > 0.1
    assert denoising_loss(str(tmp_path / "network"), str(features), num_images=12, caption="dense") == found
    assert denoising_loss(str(tmp_path / "network"), str(features), num_images=12, caption="alt_text") != found
