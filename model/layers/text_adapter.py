"""Text adapter: one or two transformer blocks on the projected captions, before the network's blocks read them.

    y = projected captions;  each block: y += attention(norm(y)); y += SwiGLU(norm(y))

A text encoder is frozen; the adapter lets the network mix the tokens of a caption as drawing needs them. It is computed once
per forward, and once per prompt in sampling; it reads neither timestep nor image. Attention has the network's heads and no
positions: the encoder's tokens bring them along.

Source: i1 (arXiv 2606.11289).
Shapes: B samples, T caption tokens of the whole batch, L tokens of its longest caption, D width, d width of a head.
"""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from model.dit_config import DiTConfig
from model.layers.captions import CaptionTokens, packed_again, side_by_side
from model.layers.primitives import Linear, RmsNorm, attend

NORM_EPS = 1e-6


class AdapterAttention(nn.Module):
    """Every token of a caption looks at every token of it, and at none of another caption."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.qkv = Linear(config.width, 3 * config.width)
        self.q_norm = RmsNorm(config.head_width, eps=NORM_EPS)
        self.k_norm = RmsNorm(config.head_width, eps=NORM_EPS)
        self.proj = Linear(config.width, config.width)

    def forward(self, y: Tensor, captions: CaptionTokens) -> Tensor:
        """(T, D) to (T, D)."""
        queries, keys, values = self.qkv(y).unflatten(1, (3, self.heads, -1)).unbind(1)  # 3 x (T, heads, d)
        queries, keys = self.q_norm(queries), self.k_norm(keys)
        rows = (captions.num, captions.longest, self.heads, -1)
        filled = [side_by_side(part.flatten(1), captions).view(rows) for part in (queries, keys, values)]  # (B, L, heads, d)
        attended = attend(filled[0], filled[1], filled[2], captions.bias)  # (B, L, D)
        return self.proj(packed_again(attended.flatten(0, 1), captions))  # type: ignore[no-any-return]


class SwiGlu(nn.Module):
    """Two linear layers side by side, one the gate of the other, and a third behind them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = Linear(width, hidden)
        self.value = Linear(width, hidden)
        self.proj = Linear(hidden, width)

    def forward(self, y: Tensor) -> Tensor:
        """(T, D) to (T, D)."""
        return self.proj(F.silu(self.gate(y)) * self.value(y))  # type: ignore[no-any-return]


class AdapterBlock(nn.Module):
    """Self-attention within each caption, then SwiGLU; no modulation."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.attn_norm = RmsNorm(config.width, eps=NORM_EPS)
        self.attn = AdapterAttention(config)
        self.mlp_norm = RmsNorm(config.width, eps=NORM_EPS)
        self.mlp = SwiGlu(config.width, config.adapter_hidden)

    def forward(self, y: Tensor, captions: CaptionTokens) -> Tensor:
        """(T, D) to (T, D); of `captions` it reads where the tokens are."""
        y = y + self.attn(self.attn_norm(y), captions)  # (T, D)
        return y + self.mlp(self.mlp_norm(y))  # type: ignore[no-any-return]

    def start_as_identity(self) -> None:
        """Sets both output projections to zero: for a network that was trained without the block."""
        for part in (self.attn.proj, self.mlp.proj):
            part.reset_parameters()
