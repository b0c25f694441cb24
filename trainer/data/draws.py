"""Everything random about a sample in training, from the seed and the sample's place in the order alone.

So there is no state to save, a sample draws the same on any number of workers, and a resumed training goes on as it would have.
Philox is keyed by (seed, place): no two places share their numbers. Source: Salmon et al. 2011.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Draws:
    """Of B samples, on the CPU, float32."""

    noise: Tensor
    """(B, C, h, w) what the network is to find."""
    latent_noise: Tensor
    """(B, C, h, w) that picks latents from the VAE's distribution."""
    quantiles: Tensor
    """(B,) in 0..1: of the objective's distribution of timesteps."""
    dropout: Tensor
    """(B,) in 0..1: below the share of class dropout, a sample loses its class."""


def draw(shape: tuple[int, int, int], *, seed: int, places: Sequence[int]) -> Draws:
    """Draws for latents of shape (C, h, w). `places` counts images since the start of the stage."""
    normals = np.empty((len(places), 2, *shape), dtype=np.float32)
    uniforms = np.empty((len(places), 2), dtype=np.float32)
    for row, place in enumerate(places):
        source = np.random.Generator(np.random.Philox(key=np.array([seed, place], dtype=np.uint64)))
        source.random(out=uniforms[row], dtype=np.float32)
        source.standard_normal(out=normals[row], dtype=np.float32)
    both, pair = torch.from_numpy(normals), torch.from_numpy(uniforms)
    return Draws(noise=both[:, 0], latent_noise=both[:, 1], quantiles=pair[:, 0], dropout=pair[:, 1])
