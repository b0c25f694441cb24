"""Noise of samples, with the quantile of their timestep, class dropout and token routes: counter-based random numbers.

The numbers of sample i depend on (seed, i) alone, so that there is no state to save, a sample gets the same ones on any number
of workers, and a resumed training continues as if unbroken.
Philox is keyed by (seed, i): no two samples share their numbers. Source: Salmon et al. 2011.

On a CPU, normal numbers are numpy's. On a GPU they are computed there, by Box and Muller from Philox4x32 with 10 rounds: other
numbers, as independent of each other. Everything else is the same on all devices.
Shapes: B samples, C latent channels, h x w the sides of the latents, N tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.data.philox import Words, uniforms_float32

_CPU = torch.device("cpu")
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = 0xFFFFFFFF


@dataclass(frozen=True, eq=False)
class SampleNoise:
    """Random numbers of B samples, float32."""

    noise: Tensor
    """(B, C, h, w): the noise that the network is to find."""
    latent_noise: Tensor
    """(B, C, h, w): draws latents from the VAE's distribution."""
    quantiles: Tensor
    """(B,) in 0..1, on the CPU: quantiles of the objective's distribution of timesteps."""
    dropout: Tensor
    """(B,) in 0..1, on the CPU: below the share of dropout, a sample loses its class or, where captions are read, its control
    image."""


def sample_noise(
    shape: tuple[int, int, int], *, seed: int, positions: Sequence[int], device: torch.device = _CPU
) -> SampleNoise:
    """Random numbers for latents of shape (C, h, w); the noise is on the device. `positions` counts images since the start of
    the stage."""
    keys = np.array([[seed, position] for position in positions], dtype=np.uint64)
    pair = torch.from_numpy(uniforms_float32(keys)[:, :2].copy())
    if device.type == "cpu":
        both = torch.from_numpy(_normals(shape, keys))
    else:
        both = device_normals((2, *shape), seed=seed, positions=positions, device=device)
    return SampleNoise(noise=both[:, 0], latent_noise=both[:, 1], quantiles=pair[:, 0], dropout=pair[:, 1])


def device_normals(shape: Sequence[int], *, seed: int, positions: Sequence[int], device: torch.device) -> Tensor:
    """Normal numbers (B, *shape), float32, computed on the device from (seed, position, index of the number).

    The integers under them are the same on all devices; logarithm and cosine may differ in the last bit from device to device.
    """
    size = math.prod(shape)
    at = torch.tensor(positions, dtype=torch.int64)
    at = (at.pin_memory() if device.type == "cuda" else at).to(device, non_blocking=True)[:, None]  # (B, 1)
    index = torch.arange(-(-size // 4), device=device)[None]  # (1, blocks)
    words = philox_4x32((index, torch.zeros_like(index), at & _MASK, at >> 32), (seed & _MASK, seed >> 32 & _MASK))
    first, second, third, fourth = ((word.float() + 0.5) * 2.0**-32 for word in words)  # (B, blocks) in 0..1, above 0
    normals = []
    for radius, turn in ((first, second), (third, fourth)):
        length, angle = radius.log().mul(-2).clamp(min=0).sqrt(), turn * (2 * math.pi)
        normals += [length * angle.cos(), length * angle.sin()]
    return torch.stack(normals, dim=2).flatten(1)[:, :size].reshape(len(positions), *shape)


def philox_4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32 with 10 rounds: four words of 32 bits, in int64, of counters of four such words that broadcast."""
    words = counter
    for turn in range(_ROUNDS):
        first, second = words[0] * _MULTIPLIERS[0], words[2] * _MULTIPLIERS[1]  # the lower 64 bits, as int64
        keys = [(own + turn * step) & _MASK for own, step in zip(key, _WEYL, strict=True)]
        words = (
            (second >> 32 & _MASK) ^ words[1] ^ keys[0],
            second & _MASK,
            (first >> 32 & _MASK) ^ words[3] ^ keys[1],
            first & _MASK,
        )
    return words


def token_ranks(num_tokens: int, *, seed: int, positions: Sequence[int]) -> Tensor:
    """A random number in 0..1 for each token of each sample (B, N), float64 on the CPU, from a stream apart from the noise."""
    rows = []
    for position in positions:
        key, apart = np.array([seed, position], dtype=np.uint64), np.array([0, 0, 0, 1], dtype=np.uint64)
        rows.append(np.random.Generator(np.random.Philox(key=key, counter=apart)).random(num_tokens))
    return torch.from_numpy(np.stack(rows))


def _normals(shape: tuple[int, int, int], keys: Words) -> npt.NDArray[np.float32]:
    """What a generator of each key gives behind the two uniform numbers: (B, 2, C, h, w)."""
    normals = np.empty((len(keys), 2, *shape), dtype=np.float32)
    for row, key in enumerate(keys):
        source = np.random.Generator(np.random.Philox(key=key))
        source.random(2, dtype=np.float32)
        source.standard_normal(out=normals[row], dtype=np.float32)
    return normals
