"""Dispersive loss: drives the hidden states of different samples apart, as contrastive learning does without its pairs.

It trains nothing besides the network. Samples are compared within groups of successive samples of the batch, so that neither
workers nor micro-batches change the loss. Source: Wang and He 2025 (arXiv 2506.09027).
Shapes: B samples, N tokens, D width, G groups of g samples.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from model.dit_config import DiTConfig
from trainer.config.techniques import DispersiveConfig
from trainer.data.batches import MicroBatch
from trainer.training.techniques.technique import Technique


class Dispersive(Technique):
    """Log of the mean of exp(-d / temperature) over all pairs of a group, d the mean squared distance of two samples."""

    def __init__(self, config: DispersiveConfig, network: DiTConfig) -> None:
        block = config.chosen_block(network.depth)
        record = asdict(config) | {"block": block}
        super().__init__("dispersive", weight=config.weight, blocks=(block,), record=record, group=config.group)
        self._temperature = config.temperature

    def forward(self, outputs: Mapping[int, Tensor], batch: MicroBatch) -> Tensor:  # noqa: ARG002
        """(B,) from the tokens (B, N, D) of its block; each sample has its group's loss, so that means are means of groups."""
        (tokens,) = outputs.values()
        with torch.autocast(tokens.device.type, enabled=False):
            states = tokens.float().flatten(1).unflatten(0, (-1, self.group))  # (G, g, N D)
            states = states - states.mean(1, keepdim=True)  # distances stay; what is subtracted below becomes small
            norms = states.square().mean(2)  # (G, g)
            products = torch.bmm(states, states.transpose(1, 2)) / states.shape[2]  # (G, g, g)
            distances = (norms[:, :, None] + norms[:, None, :] - 2 * products).clamp(min=0)  # (G, g, g)
            pairs = (-distances / self._temperature).flatten(1)  # (G, g g)
            losses = torch.logsumexp(pairs, dim=1) - 2 * math.log(self.group)  # (G,)
        return losses.repeat_interleave(self.group)  # (B,)
