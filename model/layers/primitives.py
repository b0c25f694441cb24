"""Primitives that all layers share: a linear layer without random numbers, a norm, and attention.

Shapes: B samples, N queries, M keys, D width, d width of a head.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class Linear(nn.Linear):
    """A linear layer that starts at zero: `DiT.initialise` draws the weights, no constructor does."""

    def reset_parameters(self) -> None:
        """Zeros."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class RmsNorm(nn.RMSNorm):
    """Root-mean-square norm in the dtype of what it normalises, whatever that of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        with torch.autocast(x.device.type, enabled=False):
            return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of (B, N, heads, d) over (B, M, heads, d) to (B, N, D)."""
    attended = F.scaled_dot_product_attention(
        queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=bias
    )  # (B, heads, N, d)
    return attended.transpose(1, 2).flatten(2)  # (B, N, D)
