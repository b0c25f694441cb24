"""Control: the trained copies of a network's first blocks, and what is known about them.

Source: ControlNet-Transformer, PixArt-delta (arXiv 2401.05252), section 4: a copy of each of the first N blocks, a linear layer
that starts at zero before the first copy and behind each, whose output joins the input of the next block of the frozen network.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from foundry.errors import UserError
from model.dit import ControlBlock, DiT, TextBlock
from model.dit_config import DiTConfig
from model.encoders.frozen_parts import fingerprint
from model.flops import ControlSizes

PREFIX = "control_blocks."


@dataclass(frozen=True, eq=False, kw_only=True)
class Control:
    """The copies of one network's blocks."""

    what: ClassVar[str] = "control"
    """Name of its kind, for messages."""
    tensors: Mapping[str, Tensor]
    """By their names in the network without `control_blocks.`, as 0.block.attn.qkv.weight, 0.before.weight, 0.after.weight."""
    condition: str = ""
    """Control images that it was trained on, as edges/1; empty: unknown."""
    base: str = ""
    """Checkpoint whose blocks were copied: a folder, or `mini`; empty: unknown."""
    base_fingerprint: str = ""
    """Fingerprint of its weights; empty: unknown."""

    @property
    def num_blocks(self) -> int:
        """Number of the copies."""
        return num_copies(f"{PREFIX}{name}" for name in self.tensors)

    @property
    def num_parameters(self) -> int:
        """Number of its values."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def fingerprint(self) -> str:
        """Tells it from other controls."""
        return fingerprint(self.tensors.items(), also=self.base_fingerprint)


def num_copies(names: Iterable[str]) -> int:
    """Number of the copies among the names of a network's tensors."""
    return len({name.split(".")[1] for name in names if name.startswith(PREFIX)})


def add_copies(network: DiT, num: int) -> None:
    """Freezes a network and copies its first blocks, to be trained; it computes what it did.

    Raises UserError for a network that reads no captions, and where no block would follow a copy.
    """
    if network.config.conditioning != "text":
        raise UserError("a control is for networks that read captions, found one that reads classes", setting="control.kind")
    if not 1 <= num < network.config.depth:
        raise UserError(
            f"expected 1 to {network.config.depth - 1} copied blocks, since the last one's output joins a block behind it, "
            f"found {num}",
            setting="control.blocks",
        )
    network.requires_grad_(False)
    for index in range(num):
        with network.x_embedder.proj.weight.device:
            copy = ControlBlock(network.config, index=index)
        block = network.blocks[index]
        assert isinstance(block, TextBlock), "it reads captions"
        copy.block = deepcopy(block)
        network.control_blocks.append(copy)
    network.control_blocks.requires_grad_(True)


def put_control(network: DiT, control: Control, *, scale: float = 1.0) -> None:
    """Puts a control into the network that it is of, in the dtype and on the device of its weights."""
    weight = network.x_embedder.proj.weight
    with torch.device("meta"):
        copies = control_blocks(network.config, control.num_blocks)
    copies.load_state_dict({name: tensor.to(weight) for name, tensor in control.tensors.items()}, assign=True)
    network.control_blocks = copies.train(network.training)
    network.control_scale = scale


def control_blocks(config: DiTConfig, num: int) -> torch.nn.ModuleList:
    """The copies of a network of this configuration, all zeros."""
    return torch.nn.ModuleList([ControlBlock(config, index=index) for index in range(num)])


@lru_cache
def control_sizes(config: DiTConfig, num: int) -> ControlSizes:
    """The sizes of a control of a network of this configuration."""
    with torch.device("meta"):
        copies = control_blocks(config, num)
    return ControlSizes(num, tuple(parameter.numel() for parameter in copies.parameters()))


def trained_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a control among a network's."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in weights.items() if name.startswith(PREFIX)}


def check_fits(control: Control, config: DiTConfig, *, source: str) -> None:
    """Raises UserError, by name, for a control of another network than this configuration's."""
    num = control.num_blocks
    if not 1 <= num < config.depth:
        raise UserError(f"{source} has copies of {num} blocks: expected 1 to {config.depth - 1}", setting="control")
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in control_blocks(config, num).state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in control.tensors.items()}
    if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        name = wrong[0]
        raise UserError(
            f"{source} is a control of another network: {name}: expected {_shape(expected.get(name))}, found "
            f"{_shape(found.get(name))}",
            setting="control",
        )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "no such tensor" if shape is None else str(list(shape))
