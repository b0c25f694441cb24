"""AdamW over groups of parameters, with its learning rate at each step."""

import math

import torch
from torch import nn

from trainer.config.optim import OptimConfig

_TABLES = ("scale_shift_table", "embedding_table.weight")


def make_optimizer(network: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW. Weight decay acts on matrices and convolutions, not on norms, biases, embeddings and tables."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        (decayed if parameter.ndim >= 2 and not name.endswith(_TABLES) else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(config: OptimConfig, *, step: int, num_steps: int) -> float:
    """Learning rate of a rung's step, counted from 0: linear warm-up, then constant or half a cosine down to zero."""
    rise = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "constant" or rise < 1:
        return config.lr * rise
    share = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, share))))
