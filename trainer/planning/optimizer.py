"""Cost of an optimiser: bytes of its moments, and the operations of a step besides those of the network."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from model.dit_config import DiTConfig
from model.flops import AdaptationSizes
from trainer.config.optim import OptimConfig

if TYPE_CHECKING:
    import torch

_FLOAT_BYTES = 4
_MOMENTS = 2
_LEAST_VALUES, _BLOCK_VALUES = 4096, 256
"""Limits of torchao: smaller weights, and those that blocks do not divide, keep float32."""


@dataclass(frozen=True, kw_only=True)
class OptimizerCost:
    """Cost of an optimiser for a whole network."""

    num_bytes: float
    """Bytes of all moments, over all shards."""
    step_flops: float
    """Operations of a step, which workers share: Muon's matrix products; what is done value by value is not counted."""


@lru_cache
def optimizer_cost(config: DiTConfig, optim: OptimConfig, adapted: AdaptationSizes | None = None) -> OptimizerCost:
    """The cost for the network of a configuration, or for the LoRA or control that is trained in its place."""
    if adapted is not None:
        in_eight_bits = optim.name == "adamw8bit"
        moments = sum(_moment_bytes(size, in_eight_bits=in_eight_bits) for size in adapted.tensors)
        return OptimizerCost(num_bytes=_MOMENTS * moments, step_flops=0.0)
    import torch

    from model.dit import DiT
    from model.layers.matrices import block_matrices

    with torch.device("meta"):
        network = DiT(config)
    parts = block_matrices(network) if optim.name == "muon" else {}
    num_bytes, flops = 0.0, 0.0
    for name, parameter in network.named_parameters():
        if name in parts:
            num_bytes += _FLOAT_BYTES * parameter.numel()  # the momentum
            flops += _orthogonal_flops(parameter, parts[name] if optim.muon_split else 1) * optim.newton_schulz_steps
        else:
            num_bytes += _MOMENTS * _moment_bytes(parameter.numel(), in_eight_bits=optim.name == "adamw8bit")
    return OptimizerCost(num_bytes=num_bytes, step_flops=flops)


def _orthogonal_flops(weight: "torch.Tensor", num_matrices: int) -> float:
    """Operations of a Newton-Schulz iteration on all matrices of a weight; see trainer/training/techniques/muon.py."""
    rows, columns = weight.shape[0] // num_matrices, weight.shape[1]
    short, long = min(rows, columns), max(rows, columns)
    return num_matrices * (4.0 * short**2 * long + 2.0 * short**3)


def _moment_bytes(num_values: int, *, in_eight_bits: bool) -> float:
    if in_eight_bits and num_values >= _LEAST_VALUES and num_values % _BLOCK_VALUES == 0:
        return num_values * (1 + _FLOAT_BYTES / _BLOCK_VALUES)
    return num_values * _FLOAT_BYTES
