"""Optimisers: AdamW, Muon (techniques/muon.py) or AdamW with 8-bit moments; their tensors, their learning rate at each step."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from foundry.errors import UserError
from model.layers.matrices import block_matrices
from trainer.config.optim import OptimConfig
from trainer.config.train import TrainConfig
from trainer.training.techniques.muon import Muon, MuonSettings

_TABLES = ("scale_shift_table", "embedding_table.weight")


def make_optimizer(
    network: nn.Module,
    config: OptimConfig,
    *,
    projectors: Sequence[nn.Module] = (),
    dtype: torch.dtype = torch.float32,
    compiled: bool = True,
) -> torch.optim.Optimizer:
    """The optimiser of a network's parameters that are trained.

    Weight decay acts on matrices and convolutions, not on norms, biases, embeddings and tables.

    `projectors`: what techniques train besides the network; `dtype`: number format of Muon's matrix products; `compiled`:
    whether a library may compile its step. Raises UserError where a library is missing.
    """
    named = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    matrices = block_matrices(network) if config.name == "muon" else {}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    others = [(name, parameter) for name, parameter in named.items() if name not in matrices]
    for name, parameter in [*others, *(pair for module in projectors for pair in module.named_parameters())]:
        (decayed if parameter.ndim >= 2 and not name.endswith(_TABLES) else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    common: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if config.name == "adamw8bit":
        return _adamw8bit(groups, common, compiled=compiled)
    if config.name == "muon":
        settings = MuonSettings(momentum=config.momentum, num_iterations=config.newton_schulz_steps, dtype=dtype)
        parts = {named[name]: number if config.muon_split else 1 for name, number in matrices.items()}
        return Muon(parts, groups, settings, **common, fused=True)
    return torch.optim.AdamW(groups, **common, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of all parameters."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def optimizer_record(config: TrainConfig, *, num_shards: int) -> str:
    """The optimiser as a checkpoint records it: a training of which it differs cannot resume from there."""
    optim = config.optim
    if optim.name == "muon" and not optim.muon_split:
        return "muon on fused matrices"
    if optim.name == "adamw8bit" and num_shards > 1:  # blocks of 256 values end with a shard
        return f"adamw8bit sharded among {num_shards} workers"
    return optim.name


def named_moments(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimiser's tensors of a module's parameters, as a checkpoint has them; after `make_moments`."""
    found: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        for key, value in optimizer.state[parameter].items():
            found |= _quantised(f"{name}.{key}", value) or {f"{name}.{key}": value}
    return found


@torch.no_grad()
def make_moments(optimizer: torch.optim.Optimizer) -> None:
    """Makes the tensors of parameters that have not stepped yet, to be stored or filled: by a step that changes nothing.

    All workers must call it.
    """
    missing = [parameter for group in optimizer.param_groups for parameter in group["params"] if not optimizer.state[parameter]]
    if not missing:
        return
    for parameter in missing:
        parameter.grad = torch.zeros_like(parameter)  # what has no gradient is passed over
    set_learning_rate(optimizer, 0.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for parameter in missing:
        if "step" in optimizer.state[parameter]:
            optimizer.state[parameter]["step"].zero_()


def learning_rate(config: OptimConfig, *, step: int, num_steps: int) -> float:
    """Learning rate of a rung's step, counted from 0: linear warm-up, then constant or half a cosine down to zero."""
    rise = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "constant" or rise < 1:
        return config.lr * rise
    share = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, share))))


def _quantised(name: str, value: Tensor) -> dict[str, Tensor]:
    """The tensors that torchao's 8-bit tensor consists of; those of a shard bear its number. Empty for any other tensor."""
    shard = ""
    if isinstance(value, DTensor):
        shard, value = f".{value.device_mesh.get_local_rank(value.device_mesh.ndim - 1)}", value.to_local()
    if not hasattr(value, "codes"):
        return {}
    return {f"{name}.{part}{shard}": getattr(value, part) for part in ("codes", "scale")}


def _adamw8bit(groups: Sequence[dict[str, Any]], common: dict[str, Any], *, compiled: bool) -> torch.optim.Optimizer:
    """torchao's AdamW, which keeps the moments of weights of 4096 values and more in 8 bits, a scale for each 256 values."""
    try:
        from torchao.optim import AdamW8bit
    except ImportError:
        raise UserError("adamw8bit needs torchao, which is not installed: pip install torchao", setting="optim.name") from None
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, **common)
    if not compiled:
        optimizer.step = torch.compiler.set_stance("force_eager")(optimizer.step)  # type: ignore[method-assign]
    return optimizer
