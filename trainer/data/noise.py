"""Noise of samples, with the quantile of their timestep, class dropout and token routes: counter-based random numbers.

The numbers of sample i depend on (seed, i) alone, so that there is no state to save, a sample gets the same ones on any number
of workers, and a resumed training continues as if unbroken.
Philox is keyed by (seed, i): no two samples share their numbers. Source: Salmon et al. 2011.
Shapes: B samples, C latent channels, h x w the sides of the latents, N tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SampleNoise:
    """Random numbers of B samples, on the CPU, float32."""

    noise: Tensor
    """(B, C, h, w): the noise that the network is to find."""
    latent_noise: Tensor
    """(B, C, h, w): draws latents from the VAE's distribution."""
    quantiles: Tensor
    """(B,) in 0..1: quantiles of the objective's distribution of timesteps."""
    dropout: Tensor
    """(B,) in 0..1: below the share of dropout, a sample loses its class or, where captions are read, its control image."""


def sample_noise(shape: tuple[int, int, int], *, seed: int, positions: Sequence[int]) -> SampleNoise:
    """Random numbers for latents of shape (C, h, w). `positions` counts images since the start of the stage."""
    normals = np.empty((len(positions), 2, *shape), dtype=np.float32)
    uniforms = np.empty((len(positions), 2), dtype=np.float32)
    for row, position in enumerate(positions):
        source = np.random.Generator(np.random.Philox(key=np.array([seed, position], dtype=np.uint64)))
        source.random(out=uniforms[row], dtype=np.float32)
        source.standard_normal(out=normals[row], dtype=np.float32)
    both, pair = torch.from_numpy(normals), torch.from_numpy(uniforms)
    return SampleNoise(noise=both[:, 0], latent_noise=both[:, 1], quantiles=pair[:, 0], dropout=pair[:, 1])


def token_ranks(num_tokens: int, *, seed: int, positions: Sequence[int]) -> Tensor:
    """A random number in 0..1 for each token of each sample (B, N), float64 on the CPU, from a stream apart from the noise."""
    rows = []
    for position in positions:
        key, apart = np.array([seed, position], dtype=np.uint64), np.array([0, 0, 0, 1], dtype=np.uint64)
        rows.append(np.random.Generator(np.random.Philox(key=key, counter=apart)).random(num_tokens))
    return torch.from_numpy(np.stack(rows))
