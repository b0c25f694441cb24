"""Linear layer whose weight is frozen in 8 bits, a float32 scale for each output: a quarter of float32's memory.

The backward pass computes the gradient of the input from the 8-bit weight again: a library that expands the weight and calls
a linear layer keeps the expanded copy of every layer until then. Matrix products run in the number format of the input, on
any device.
Shapes: O outputs, I inputs.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

_LARGEST = 127
_LEAST_SCALE = 1e-12
"""A row of zeros stays one."""


class _Product(torch.autograd.Function):
    """x @ codes.T, keeping the codes alone for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        ctx.save_for_backward(codes)
        return F.linear(x, codes.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """(..., O) to (..., I); the weight is frozen."""
        (codes,) = ctx.saved_tensors
        return gradients[0] @ codes.to(gradients[0].dtype), None


class Int8Linear(nn.Linear):
    """A linear layer made of another one, whose weight and bias it freezes."""

    codes: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        self.register_buffer("codes", weight.new_empty(weight.shape, dtype=torch.int8))  # (O, I)
        self.register_buffer("scale", weight.new_empty(len(weight), dtype=torch.float32))  # (O,)
        self.store(weight)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    def store(self, weight: Tensor) -> None:
        """Takes another weight (O, I)."""
        weight = weight.float().to(self.codes.device)
        scale = (weight.abs().amax(1) / _LARGEST).clamp(min=_LEAST_SCALE)  # (O,)
        self.codes.copy_((weight / scale[:, None]).round())
        self.scale.copy_(scale)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(O, I) the weight that it represents, float32."""
        return dequantised(self.codes, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O), in the number format of autocast where that is on, else in that of the input."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        with torch.autocast(kind, enabled=False):
            product: Tensor = _Product.apply(x.to(dtype), self.codes) * self.scale.to(dtype)  # (..., O)
            return product if self.bias is None else product + self.bias.to(dtype)


def dequantised(codes: Tensor, scale: Tensor) -> Tensor:
    """The weight (O, I), float32."""
    return codes.float() * scale[:, None]
