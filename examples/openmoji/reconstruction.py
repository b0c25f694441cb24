"""Reconstruction quality of an autoencoder on unseen scenes."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

_SEED = 9
_BATCH_SIZE = 32


def psnr(folder: Path, *, count: int, latent_noise: float = 0.0) -> npt.NDArray[np.float64]:
    """Peak signal-to-noise ratio in dB of each of `count` unseen scenes, (count,), in float32, from the latents' means.

    `latent_noise` is the deviation of noise on the latents as a diffusion model sees them, of unit variance.
    """
    import torch

    from examples.openmoji.composition import draw_scene, render
    from model.encoders.vae import VAEConfig, load_vae

    vae = load_vae(VAEConfig(name=str(folder), sliced=False))
    generator = torch.Generator().manual_seed(0)
    ratios = []
    for first in range(0, count, _BATCH_SIZE):
        indices = range(first, min(first + _BATCH_SIZE, count))
        scenes = np.stack([render(draw_scene(seed=_SEED, index=index, split="unseen")) for index in indices])
        images = torch.from_numpy(scenes).permute(0, 3, 1, 2).float() / 255  # (B, 3, 64, 64)
        latents = vae.encode(images * 2 - 1).sample(vae.scale, generator=None)
        latents = latents + latent_noise * torch.randn(latents.shape, generator=generator)
        decoded = (vae.decode(latents) / 2 + 0.5).clamp(0, 1)
        ratios.append(-10 * torch.log10((decoded - images).square().mean(dim=(1, 2, 3))).double().numpy())
    return np.concatenate(ratios)
