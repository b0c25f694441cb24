"""Linear layer whose weight is frozen in 4 bits, by groups of 64 inputs: a seventh of float32's memory, for generation.

A group's weights are 16 evenly spaced values from its smallest to its largest one. Two codes share a byte. The weight is
expanded in the number format of the input, layer by layer, and multiplied there: on any device, without a library.
Shapes: O outputs, I inputs, G groups of 64.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

GROUP = 64
_LARGEST = 15
_LEAST_STEP = 1e-12
"""A group of equal weights stays one."""


class Int4Linear(nn.Module):
    """A linear layer made of another one, whose weight and bias it freezes."""

    weight = None
    """There is no such tensor: T5 would compute in its number format."""
    codes: Tensor
    step: Tensor
    least: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        groups = -(-self.in_features // GROUP)
        weight = linear.weight.detach()
        self.register_buffer("codes", weight.new_empty((self.out_features, groups * GROUP // 2), dtype=torch.uint8))
        self.register_buffer("step", weight.new_empty((self.out_features, groups, 1)))
        self.register_buffer("least", weight.new_empty((self.out_features, groups, 1)))
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
        self.store(weight)

    def store(self, weight: Tensor) -> None:
        """Takes another weight (O, I)."""
        padding = self.step.shape[1] * GROUP - self.in_features
        groups = F.pad(weight.float(), (0, padding)).unflatten(1, (-1, GROUP))  # (O, G, 64)
        least = groups.amin(2, keepdim=True)  # (O, G, 1)
        step = ((groups.amax(2, keepdim=True) - least) / _LARGEST).clamp(min=_LEAST_STEP)  # (O, G, 1)
        codes = ((groups - least) / step).round().to(torch.uint8).flatten(1)  # (O, 64 G)
        self.codes.copy_(codes[:, ::2] | codes[:, 1::2] << 4)
        self.step.copy_(step)
        self.least.copy_(least)

    def expanded(self, dtype: torch.dtype) -> Tensor:
        """(O, I) the weight that it represents."""
        codes = torch.stack([self.codes & _LARGEST, self.codes >> 4], dim=2).flatten(1)  # (O, 64 G)
        groups = codes.unflatten(1, (-1, GROUP)).to(dtype)  # (O, G, 64)
        weight: Tensor = groups.mul_(self.step.to(dtype)).add_(self.least.to(dtype)).flatten(1)  # (O, 64 G)
        return weight[:, : self.in_features]

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O), in the number format of the input."""
        product: Tensor = F.linear(x, self.expanded(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        return product
