"""The network that adaLN-single is compared with: a text-conditional DiT whose blocks have a modulation MLP each.

It is DiT's adaLN-Zero with PixArt's cross-attention, the baseline of the paper's section 2.3. Trained by the loop of
trainer.fit itself, into whose places for a network it is put.
"""

from collections.abc import Mapping
from dataclasses import replace
from unittest.mock import patch

import torch
from torch import Tensor, nn

from model.dit import CaptionTokens, DiT, DiTConfig, FinalLayer, KeysValues, Linear, TextBlock
from trainer.config.train import TrainConfig
from trainer.distributed import Workers
from trainer.training import checkpoints, loop, start


class PerBlockDiT(DiT):
    """The text-conditional DiT with per-block adaLN. Shapes as in model/dit.py."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.t_block = nn.Sequential(SixTimes())
        self.blocks = nn.ModuleList([PerBlockTextBlock(config, index=index) for index in range(config.depth)])
        self.final_layer = FinalLayer(replace(config, conditioning="class"))


class SixTimes(nn.Module):
    """Replacement of the shared MLP that passes the condition on to the blocks, in the shape of a modulation."""

    def forward(self, condition: Tensor) -> Tensor:
        """(B, D) to (B, 6 D)."""
        return condition.repeat(1, 6)  # (B, 6 D)


class PerBlockTextBlock(TextBlock):
    """A block with an MLP for its modulation, and no table. It starts at zero, as DiT's (adaLN-Zero)."""

    scale_shift_table: Tensor  # type: ignore[assignment]

    def __init__(self, config: DiTConfig, *, index: int) -> None:
        super().__init__(config, index=index)
        del self.scale_shift_table
        self.register_buffer("scale_shift_table", torch.zeros(6, config.width), persistent=False)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(config.width, 6 * config.width))

    def forward(self, x: Tensor, shared: Tensor, captions: CaptionTokens | KeysValues, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, N, D), the condition six times (B, 6, D) and captions to (B, N, D)."""
        with torch.autocast(x.device.type, enabled=False):
            own = self.adaLN_modulation(shared[:, 0]).unflatten(1, (6, -1))  # (B, 6, D)
        return super().forward(x, own, captions, grid)


def train_per_block(config: TrainConfig) -> bool:
    """Trains such a network from scratch as trainer.fit does, and resumes it; returns whether it is done.

    This function alone resumes its checkpoints: they are no `transformer/` of a DiT.
    """
    with (
        patch.object(start, "new_network", _new_network),
        patch.object(start, "DiT", PerBlockDiT),
        patch.object(checkpoints, "network_around", _network_around),
    ):
        return loop.train(config, Workers())


def _new_network(config: DiTConfig, *, seed: int) -> DiT:
    return PerBlockDiT(config).initialise(torch.Generator().manual_seed(seed))


def _network_around(config: DiTConfig, weights: Mapping[str, Tensor]) -> DiT:
    with torch.device("meta"):
        network = PerBlockDiT(config)
    network.load_state_dict(weights, assign=True)
    return network
