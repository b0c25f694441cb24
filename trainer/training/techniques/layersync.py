"""LayerSync: tokens behind an early block follow those behind a later one, which knows more and does not follow them.

It trains nothing besides the network. Source: Haghighi et al. 2025 (arXiv 2510.12581).
Shapes: B samples, N tokens, D width.
"""

from collections.abc import Mapping
from dataclasses import asdict

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from model.dit_config import DiTConfig
from trainer.config.techniques import LayerSyncConfig
from trainer.data.batches import MicroBatch
from trainer.training.techniques.technique import Technique


class LayerSync(Technique):
    """Minus the cosine of the same token behind two blocks; the later block gets no gradient of it."""

    def __init__(self, config: LayerSyncConfig, network: DiTConfig) -> None:
        block, target = config.chosen_block(network.depth), config.chosen_target(network.depth)
        record = asdict(config) | {"block": block, "target": target}
        super().__init__("layersync", weight=config.weight, blocks=(block, target), record=record)

    def forward(self, outputs: Mapping[int, Tensor], batch: MicroBatch) -> Tensor:
        """(B,) in -1..1 from the tokens (B, N, D) of both blocks."""
        follower, target = (outputs[number] for number in self.blocks)
        follower, target = batch.seen(follower, like=target), batch.seen(target, like=follower)  # of tokens that both saw
        with torch.autocast(follower.device.type, enabled=False):
            return -F.cosine_similarity(follower.float(), target.detach().float(), dim=2).mean(1)  # (B,)
