"""Technique: a loss that is added to the objective's, with what it trains besides the network.

A technique reads the hidden states of some blocks and the clean micro-batch. What it trains is not part of the network: it has
gradients and moments like the network's weights, is shared among workers as they are, is saved for resuming, and is neither in
the moving average nor in what is exported.

Shapes: B samples, N tokens, D width.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from model.dit import Linear
from trainer.config.ladder import LadderPosition
from trainer.config.running import DistributedConfig
from trainer.config.train import TrainConfig
from trainer.data.batches import MicroBatch
from trainer.distributed import Workers


class Technique(nn.Module):
    """A loss per sample; called with the outputs of its blocks and the micro-batch. All weights are zero until `initialise`."""

    def __init__(self, name: str, *, weight: float, blocks: Sequence[int], record: Mapping[str, Any], group: int = 1) -> None:
        super().__init__()
        self.name = name
        self.weight = weight
        """What the loss is multiplied by when it is added."""
        self.blocks = tuple(blocks)
        """Numbers of the blocks whose outputs it reads, from 1."""
        self.record = dict(record)
        """Settings that a resumed training must share, as JSON holds them."""
        self.group = group
        """Successive samples that the loss looks at together."""

    @property
    def reads_teacher(self) -> bool:
        """Whether it needs the stored features of a teacher while it acts."""
        return False

    def num_images(self, position: LadderPosition) -> int:
        """Images of a resolution step in which it takes part, from the first one on."""
        return position.rung.images_seen

    def initialise(self, generator: torch.Generator) -> None:
        """Draws the weights of what it trains."""
        for module in self.modules():
            if isinstance(module, Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)

    def forward(self, outputs: Mapping[int, Tensor], batch: MicroBatch) -> Tensor:
        """Losses (B,) float32 for the outputs (B, N, D) of its blocks, by their numbers."""
        raise NotImplementedError


def projector(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with SiLU between, of these channels."""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [Linear(width_in, width_out), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True, eq=False)
class SharedTechnique:
    """A technique as a step calls it."""

    technique: Technique
    module: nn.Module
    """The technique, or DDP around it; sharded in place under FSDP2."""

    def loss(self, outputs: Mapping[int, Tensor], batch: MicroBatch, precision: torch.dtype) -> Tensor:
        """Losses (B,), with matrix products in this number format."""
        own = {number: outputs[number] for number in self.technique.blocks}
        with torch.autocast(batch.latents.device.type, dtype=precision, enabled=precision != torch.float32):
            return self.module(own, batch)  # type: ignore[no-any-return]


def share(technique: Technique, *, workers: Workers, config: DistributedConfig) -> SharedTechnique:
    """The technique on its device, shared among the workers as the network is.

    Each has a wrapper to itself, so that one that does not act in a step takes no part in its backward pass.
    """
    technique = technique.to(workers.device, torch.float32).train()
    has_weights = any(parameter.requires_grad for parameter in technique.parameters())
    if workers.num == 1 or not has_weights:
        return SharedTechnique(technique, technique)
    if workers.num_shards(config) > 1:
        fully_shard(technique, mesh=workers.mesh(config))
        return SharedTechnique(technique, technique)
    return SharedTechnique(technique, DistributedDataParallel(technique, gradient_as_bucket_view=True))


def setting_records(config: TrainConfig, techniques: Sequence[SharedTechnique]) -> dict[str, dict[str, Any]]:
    """The settings of techniques, routing, LoRA, control and distillation that a resumed training must share, by name."""
    records = {shared.technique.name: shared.technique.record for shared in techniques}
    return records | config.routing.record() | config.lora.record() | config.control.record() | config.few_steps.record()


@contextmanager
def synchronised(modules: Sequence[nn.Module], *, now: bool) -> Iterator[None]:
    """Has the backward pass inside all-reduce the gradients of these modules, or not."""
    with ExitStack() as stack:
        for module in modules:
            if isinstance(module, FSDPModule):
                module.set_requires_gradient_sync(now)
            elif isinstance(module, DistributedDataParallel) and not now:
                stack.enter_context(module.no_sync())
        yield
