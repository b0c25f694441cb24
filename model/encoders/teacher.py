"""Teacher: what a frozen vision tower sees in latents, which the VAE decodes for it.

Features hold latents and no pixels; decoded, they are the very crop that the network learns from, as the VAE keeps it.
Shapes: B samples, C latent channels, H x W latent pixels, h x w cells of a grid, F channels of the tower.
"""

from typing import TYPE_CHECKING

from foundry.hardware import Halving
from model.encoders.vae import VAE
from model.encoders.vision_tower import VisionTower

if TYPE_CHECKING:
    import torch

DECODED_PX = 1 << 19
"""Pixels that the VAE decodes at once: 8 images of 256 px."""


class Teacher:
    """A tower with its VAE. Neither is trained."""

    def __init__(self, tower: VisionTower, vae: VAE) -> None:
        self.tower = tower
        self.vae = vae
        self.batches = Halving()

    def features(self, latents: "torch.Tensor", grid: tuple[int, int]) -> "torch.Tensor":
        """The tower's features (B, h w, F), float32, in the cells of a grid (h, w) of clean latents (B, C, H, W), scaled."""
        import torch

        side_px = self.vae.downsampling
        at_once = max(1, DECODED_PX // (latents.shape[2] * latents.shape[3] * side_px**2))
        with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
            parts = [self.tower.features(self.vae.reconstruct(part), grid) for part in latents.split(at_once)]
            return torch.cat(parts)  # (B, h w, F)
