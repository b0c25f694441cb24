"""Muon: momentum whose update of each matrix or filter is made orthogonal.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the scale of the update is that of
Liu et al. 2025, "Muon is scalable for LLM training", so that learning rates are like AdamW's. Deviation: torch.optim.Muon
takes matrices only; a filter counts as a matrix of output channels x the rest.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from foundry.hardware import auto_dtype
from trainer.training.techniques.muon import newton_schulz

_ITERATIONS = 5
_UPDATE_RMS = 0.2


class Muon(torch.optim.Optimizer):
    """Muon for the matrices and filters between a network's first and last layer."""

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonal(parameter.grad.lerp(state["momentum"], group["momentum"]).flatten(1))
                scale = _UPDATE_RMS * max(update.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.view(parameter.shape), alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with singular values near 1 instead of its own, in float32; iterations in bf16 where the hardware has it."""
    dtype = getattr(torch, auto_dtype(matrix.device.type))
    return newton_schulz(matrix[None], num_iterations=_ITERATIONS, dtype=dtype)[0].float()
