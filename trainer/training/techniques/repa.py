"""REPA: tokens behind a block, through a projector, align with what a frozen vision tower sees in the clean image.

Features hold latents and no pixels, so the VAE decodes the latents: the teacher sees the same crop, as the VAE keeps it.
Source: Yu et al. 2024 (arXiv 2410.06940), section 3. Deviation: the images are decoded, not read again.
Shapes: B samples, N = h w tokens, D width, F channels of the teacher, C latent channels, H x W latent pixels.
"""

from collections.abc import Mapping
from dataclasses import asdict

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from model.dit_config import DiTConfig
from model.encoders.vae import VAE
from model.encoders.vision_tower import VisionTower
from trainer.config.ladder import LadderPosition
from trainer.config.techniques import RepaConfig
from trainer.data.batches import MicroBatch
from trainer.training.techniques.technique import Technique, projector

_DECODED_PX = 1 << 19
"""Pixels that the VAE decodes at once: 8 images of 256 px."""


class Teacher:
    """The tower, and the VAE that makes images of latents. Neither is trained, saved or shared among workers."""

    def __init__(self, tower: VisionTower, vae: VAE) -> None:
        self.tower = tower
        self._vae = vae

    def features(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        """What the tower sees (B, N, F) in clean latents (B, C, H, W), in the cells of a grid (h, w)."""
        side_px = self._vae.downsampling
        at_once = max(1, _DECODED_PX // (latents.shape[2] * latents.shape[3] * side_px**2))
        with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
            return torch.cat(
                [self.tower.features(self._vae.reconstruct(part), grid) for part in latents.split(at_once)]
            )  # (B, N, F)


class Repa(Technique):
    """Minus the cosine between projected tokens and the teacher's."""

    def __init__(self, config: RepaConfig, network: DiTConfig, teacher: Teacher) -> None:
        block = config.chosen_block(network.depth)
        widths = config.projector_widths(network.width, teacher_width=teacher.tower.width)
        # Not the teacher's name, which a folder may change, and not its number format, which the hardware may.
        settings = {name: value for name, value in asdict(config).items() if name not in ("teacher", "revision", "dtype")}
        record = settings | {"block": block, "hidden": widths[1], "teacher": teacher.tower.fingerprint()}
        super().__init__("repa", weight=config.weight, blocks=(block,), record=record)
        self._config = config
        self._patch_size = network.patch_size
        self._teacher = teacher
        self.projector = projector(widths)

    def acts_at(self, images_seen: int, position: LadderPosition) -> bool:
        """Until the share of the resolution step, or the images of the stage, that the settings give."""
        in_rung = images_seen - position.images_before
        stop_images = self._config.stop_images
        return in_rung < self._config.stop_share * position.rung.images_seen and (
            stop_images is None or images_seen < stop_images
        )

    def forward(self, outputs: Mapping[int, Tensor], batch: MicroBatch) -> Tensor:
        """(B,) in -1..1 from the tokens (B, N, D) of its block."""
        (tokens,) = outputs.values()
        grid = (batch.latents.shape[2] // self._patch_size, batch.latents.shape[3] // self._patch_size)
        target = self._teacher.features(batch.latents, grid)  # (B, N, F)
        predicted = self.projector(tokens)  # (B, N, F)
        with torch.autocast(tokens.device.type, enabled=False):
            return -F.cosine_similarity(predicted.float(), target, dim=2).mean(1)  # (B,)
