"""Floating-point operations of a DiT, layer by layer, from its configuration: for plans, and for the utilisation in the log.

Counted are matrix products, attention and convolutions, two operations to a multiplication and addition, as torch's
FlopCounterMode counts them; nothing is counted for activations, norms and sums. A backward pass makes two products for each
product forward, one for the weights and one for the input, or one where the input needs no gradient. What gradient
checkpointing or an attention kernel computes twice is not in it: utilisation is that of the model's own work.

D width, N patches, M keys of self-attention, L caption tokens, F channels of the text encoder; all figures are for one image.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from model.dit_config import DiTConfig, RoutedBlocks


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one image."""

    forward: float = 0.0
    """Operations of a forward pass."""
    backward: float = 0.0
    """Operations of a backward pass."""

    @property
    def training(self) -> float:
        """Operations of both passes."""
        return self.forward + self.backward

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(forward=self.forward + other.forward, backward=self.backward + other.backward)

    def __mul__(self, factor: float) -> "Flops":
        return Flops(forward=self.forward * factor, backward=self.backward * factor)


def dit_flops(
    config: DiTConfig, *, grid: tuple[int, int], caption_tokens: float = 0.0, routed: RoutedBlocks | None = None
) -> dict[str, Flops]:
    """Operations of an image of a grid (h, w) of patches with so many caption tokens, by layer; blocks are summed up.

    `routed`: blocks that see a part of the tokens.
    """
    num, width = grid[0] * grid[1], config.width
    patch_values = config.patch_size**2 * config.in_channels
    layers = {
        "patches": _linear(num, patch_values, width, reads_data=True),
        "conditions": _conditions(config),
        "captions": Flops(),
        "text-adapter": Flops(),
        **_blocks(config, num, caption_tokens),
        "final": _linear(num, width, config.patch_size**2 * config.out_channels),
    }
    if routed is not None:
        share = (config.depth - routed.before - routed.after) / config.depth
        few = _blocks(config, routed.num_kept(num), caption_tokens)
        layers |= {name: layers[name] * (1 - share) + few[name] * share for name in few}
    if config.conditioning == "text":
        layers["captions"] = _linear(caption_tokens, config.caption_width, width, reads_data=True)
        layers["captions"] += _linear(caption_tokens, width, width)
        layers["text-adapter"] = _adapter_block(config, caption_tokens) * config.text_adapter_blocks
    return layers


def total(layers: Mapping[str, Flops]) -> Flops:
    """Sum of all layers."""
    return sum(layers.values(), start=Flops())


def training_flops(
    config: DiTConfig, *, grid: tuple[int, int], caption_tokens: float = 0.0, routed: RoutedBlocks | None = None
) -> float:
    """Operations that training on one image takes, forward and backward."""
    return total(dit_flops(config, grid=grid, caption_tokens=caption_tokens, routed=routed)).training


def _blocks(config: DiTConfig, num: int, caption_tokens: float) -> dict[str, Flops]:
    """The layers of all blocks on so many tokens."""
    width = config.width
    cross = Flops()
    if config.conditioning == "text":
        projections = _linear(num, width, width) * 2 + _linear(caption_tokens, width, 2 * width)
        cross = (projections + _attention(num, caption_tokens, width)) * config.depth
    return {
        "self-attention": _self_attention(config, num),
        "cross-attention": cross,
        "mlp": (_linear(num, width, config.mlp_width) + _linear(num, config.mlp_width, width)) * config.depth,
    }


def _linear(rows: float, width_in: int, width_out: int, *, reads_data: bool = False) -> Flops:
    """A linear layer on `rows` vectors; one that reads data makes no gradient of its input."""
    forward = 2.0 * rows * width_in * width_out
    return Flops(forward=forward, backward=forward if reads_data else 2 * forward)


def _attention(queries: float, keys: float, width: int) -> Flops:
    """Scores and the sum of values."""
    forward = 4.0 * queries * keys * width
    return Flops(forward=forward, backward=2 * forward)


def _self_attention(config: DiTConfig, num: int) -> Flops:
    """Self-attention of all blocks; compressed ones first reduce keys and values, each by a depthwise convolution."""
    width, compression = config.width, config.kv_compression
    projections = _linear(num, width, 3 * width) + _linear(num, width, width)
    full = _attention(num, num, width)
    convolutions = Flops(forward=2.0 * num * width, backward=4.0 * num * width) * 2
    compressed = _attention(num, num / compression.factor**2, width) + convolutions
    num_compressed = len(compression.layers)
    return projections * config.depth + full * (config.depth - num_compressed) + compressed * num_compressed


def _adapter_block(config: DiTConfig, num: float) -> Flops:
    """A block of the text adapter on a caption of so many tokens."""
    width, hidden = config.width, config.adapter_hidden
    attention = _linear(num, width, 3 * width) + _attention(num, num, width) + _linear(num, width, width)
    return attention + _linear(num, width, hidden) * 2 + _linear(num, hidden, width)


def _conditions(config: DiTConfig) -> Flops:
    """Embedders of timestep, label and sizes, and all that makes the modulation."""
    from model.dit import FREQUENCIES

    width = config.width
    flops = _linear(1, FREQUENCIES, width, reads_data=True) + _linear(1, width, width)
    if config.micro_conditioning:  # height, width and aspect ratio
        third = width // 3
        flops += (_linear(1, FREQUENCIES, third, reads_data=True) + _linear(1, third, third)) * 3
    if config.conditioning == "text":
        return flops + _linear(1, width, 6 * width)
    return flops + _linear(1, width, 6 * width) * config.depth + _linear(1, width, 2 * width)
