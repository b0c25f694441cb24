"""Denoising error of networks of either objective at the same noise levels, so that their losses can be compared.

A diffusion predicts the noise of s latents + n noise with s^2 + n^2 = 1, a rectified flow the velocity with s + n = 1, and
each is trained at its own distribution of s and n: their losses are of different things at different levels. Here both see
the same latents, noise and signal-to-noise ratio (s / n)^2; a prediction is turned into one of the latents, by noisy = s
latents + n noise, and its squared error weighs min(1, (s / n)^2). So it is the error of the latents where there is little
noise, and that of the noise where there is much: as much as either objective can be asked for. Levels are even in n / (s +
n), the time of the flow, and those of whole steps of the diffusion.

Source: the weight is that of Min-SNR (arXiv 2303.09556) with gamma 1.
Shapes: B samples, C latent channels, H x W latent pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.diffusion import Diffusion, ModelFn, Objective
from trainer.monitoring.validation import open_validation

_LOWEST, _HIGHEST = 0.02, 0.98
_GOLDEN = (math.sqrt(5) - 1) / 2
BANDS = 4


@dataclass(frozen=True)
class DenoisingLoss:
    """Means over samples."""

    loss: float
    bands: tuple[float, ...]
    """Losses by equal band of the flow's time, from little noise to much."""


@dataclass(frozen=True, eq=False)
class Level:
    """Noise levels of samples as one objective has them."""

    timesteps: Tensor
    """(B,)"""
    signal: Tensor
    """s, (B, 1, 1, 1)"""
    noise: Tensor
    """n, (B, 1, 1, 1)"""

    @property
    def times(self) -> Tensor:
        """n / (s + n), (B,)."""
        return (self.noise / (self.signal + self.noise)).flatten()


def level_at(objective: Objective, timesteps: Tensor) -> Level:
    """The level at timesteps (B,): what the objective makes of latents and of noise of ones."""
    ones = torch.ones(len(timesteps), 1, 1, 1, device=timesteps.device)
    signal, noise = (objective.add_noise(one, other, timesteps) for one, other in ((ones, 0 * ones), (0 * ones, ones)))
    return Level(timesteps=timesteps, signal=signal, noise=noise)


def levels_of(objective: Objective, times: Tensor) -> Level:
    """The level that is nearest to n / (s + n) (B,): of a whole step of the diffusion, whatever the objective."""
    diffusion = Diffusion()
    steps = torch.arange(diffusion.num_train_timesteps, dtype=torch.float32, device=times.device)
    known = level_at(diffusion, steps).times
    nearest = (known[None] - times.to(known)[:, None]).abs().argmin(dim=1)
    timesteps = steps[nearest] if isinstance(objective, Diffusion) else known[nearest] * diffusion.num_train_timesteps
    return level_at(objective, timesteps)


def denoising_error(objective: Objective, model_fn: ModelFn, latents: Tensor, *, noise: Tensor, times: Tensor) -> Tensor:
    """Weighted squared error (B,) of a network on latents (B, C, H, W) at levels near n / (s + n) (B,)."""
    level = levels_of(objective, times)
    noisy = objective.add_noise(latents, noise, level.timesteps)  # (B, C, H, W)
    predicted = model_fn(noisy, level.timesteps).float()[:, : latents.shape[1]]  # (B, C, H, W)
    if isinstance(objective, Diffusion):
        found = (noisy - level.noise * predicted) / level.signal
    else:  # the velocity, noise - latents
        found = noisy - level.noise * predicted
    weight = (level.signal / level.noise).square().clamp(max=1.0)
    return (weight * (found - latents.float()).square()).flatten(1).mean(1)  # (B,)


def fixed_times(indices: Sequence[int]) -> Tensor:
    """n / (s + n) (B,) of samples, by their indices in the validation set: successive ones fill the largest gap."""
    spread = torch.tensor([(0.5 + index * _GOLDEN) % 1 for index in indices])
    return _LOWEST + (_HIGHEST - _LOWEST) * spread


@torch.no_grad()
def denoising_loss(checkpoint: str, features: str, *, num_images: int, caption: str) -> DenoisingLoss:
    """Loss of a checkpoint's weights over the features' validation split, with the caption of this name, in float32.

    Samples, noise and levels are the same for every checkpoint. Raises UserError for features that do not fit.
    """
    opened = open_validation(checkpoint, features, num_images=num_images, weights={caption: 1.0})
    objective, device = opened.collator.objective, opened.collator.device
    sums = torch.zeros(BANDS, 2, dtype=torch.float64)
    for first, batch in opened.samples.batches:
        indices = [first + index for index in range(len(batch.samples))]
        requests = [opened.samples.request(unit, row) for unit, row in batch.samples]
        part = opened.collator.whole(opened.samples.store.read(requests))
        draws = [torch.randn(part.latents.shape[1:], generator=torch.Generator().manual_seed(index)) for index in indices]
        times = fixed_times(indices)
        predict = part.predict(opened.network, torch.float32)
        errors = denoising_error(objective, predict, part.latents, noise=torch.stack(draws).to(device), times=times.to(device))
        band = ((times - _LOWEST) / (_HIGHEST - _LOWEST) * BANDS).long().clamp(0, BANDS - 1)
        sums.index_add_(0, band, torch.stack([errors.double().cpu(), torch.ones(len(errors), dtype=torch.float64)], dim=1))
    totals = sums.sum(0)
    return DenoisingLoss(loss=float(totals[0] / totals[1]), bands=tuple((sums[:, 0] / sums[:, 1]).tolist()))
