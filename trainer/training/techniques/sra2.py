"""SRA 2: tokens behind an early block, through a projector, predict the clean latents of their patch.

The latents are there already, so that no teacher is needed. Source: Wang et al. 2026 (arXiv 2601.17830).
Shapes: B samples, N tokens, D width, C latent channels, patches of p x p.
"""

from collections.abc import Mapping
from dataclasses import asdict

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from model.dit_config import DiTConfig
from trainer.config.techniques import Sra2Config
from trainer.data.batches import MicroBatch
from trainer.training.techniques.technique import Technique, projector


class Sra2(Technique):
    """Smooth L1 between projected tokens and clean patches."""

    def __init__(self, config: Sra2Config, network: DiTConfig) -> None:
        block = config.chosen_block(network.depth)
        record = asdict(config) | {"block": block}
        super().__init__("sra2", weight=config.weight, blocks=(block,), record=record)
        self._beta = config.beta
        self._patch_size = network.patch_size
        patch_values = network.in_channels * network.patch_size**2
        self.projector = projector(config.projector_widths(network.width, patch_values=patch_values))

    def forward(self, outputs: Mapping[int, Tensor], batch: MicroBatch) -> Tensor:
        """(B,) from the tokens (B, N, D) of its block."""
        (tokens,) = outputs.values()
        predicted = self.projector(tokens)  # (B, N, C p p)
        with torch.autocast(tokens.device.type, enabled=False):
            target = F.pixel_unshuffle(batch.latents, self._patch_size).flatten(2).transpose(1, 2)  # (B, N, C p p)
            target = batch.seen(target, like=tokens)  # (B, K, C p p)
            error = F.smooth_l1_loss(predicted.float(), target, beta=self._beta, reduction="none")  # (B, N, C p p)
        return error.flatten(1).mean(1)
