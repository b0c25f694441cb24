"""Work of making features: the operations of PixArt-alpha's encoders, Stable Diffusion's VAE and T5-XXL, over a data set.

Products of matrices and convolutions are counted, a multiplication and an addition as two. Reading and decoding images, a
teacher, and the padding of captions within a batch are not counted.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from model.generation.memory import STABLE_DIFFUSION_VAE, T5_XXL

_T5: Mapping[str, Any] = T5_XXL
_VAE: Mapping[str, Any] = STABLE_DIFFUSION_VAE
VAE_DOWNSAMPLING = 8


def is_t5(width: int) -> bool:
    """Whether a text encoder whose tokens have so many channels is taken for T5-XXL."""
    return bool(width == _T5["d_model"])


def t5_bytes() -> float:
    """Bytes of T5-XXL's encoder in bf16."""
    width, inner = _T5["d_model"], _T5["num_heads"] * _T5["d_kv"]
    layer = 4 * width * inner + 3 * width * _T5["d_ff"]
    return float(2 * (_T5["num_layers"] * layer + _T5["vocab_size"] * width))


def t5_flops(num_tokens: float) -> float:
    """FLOPs of T5-XXL for a caption of this length: weights of attention and of the gated MLP, and attention itself."""
    width, inner = _T5["d_model"], _T5["num_heads"] * _T5["d_kv"]
    weights = 4 * width * inner + 3 * width * _T5["d_ff"]
    return float(_T5["num_layers"] * (2 * num_tokens * weights + 4 * num_tokens**2 * inner))


def vae_flops(resolution: int, *, latent_channels: int) -> float:
    """FLOPs of encoding a square image of this side with Stable Diffusion's VAE, or one of its sizes with more channels."""
    widths: tuple[int, ...] = _VAE["block_out_channels"]
    num_layers: int = _VAE["layers_per_block"]
    side, last, out = resolution, widths[-1], 2 * latent_channels
    flops = _conv(3, widths[0], side)
    for block, (before, width) in enumerate(pairwise((widths[0], *widths))):
        flops += _resnet(before, width, side) + (num_layers - 1) * _resnet(width, width, side)
        if block < len(widths) - 1:
            side //= 2
            flops += _conv(width, width, side)
    attention = 4 * _conv(last, last, side, kernel=1) + 4 * side**4 * last
    flops += 2 * _resnet(last, last, side) + attention
    return flops + _conv(last, out, side) + _conv(out, out, side, kernel=1)


def _resnet(before: int, width: int, side: int) -> float:
    shortcut = _conv(before, width, side, kernel=1) if before != width else 0
    return _conv(before, width, side) + _conv(width, width, side) + shortcut


def _conv(before: int, width: int, side: int, *, kernel: int = 3) -> float:
    """FLOPs of a convolution whose output has this side."""
    return 2 * before * width * kernel**2 * side**2
