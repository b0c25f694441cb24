"""Floating-point operations of a DiT, layer by layer, from its configuration: for plans, and for the utilisation in the log.

Counted are matrix products, attention and convolutions, two operations to a multiplication and addition, as torch's
FlopCounterMode counts them; nothing is counted for activations, norms and sums. A backward pass makes two products for each
product forward, one for the weights and one for the input, or one where the input needs no gradient. What gradient
checkpointing or an attention kernel computes twice is not in it: utilisation is that of the model's own work. A network that is
frozen around a LoRA or a control makes no products for its weights, and none before the first layer that is trained; the norms
of a DoRA, which do not grow with the images, are not counted.

D width, N patches, M keys of self-attention, L caption tokens, F channels of the text encoder; all figures are for one image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from model.dit_config import DiTConfig, RoutedBlocks


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one image."""

    forward: float = 0.0
    """Operations of a forward pass."""
    backward: float = 0.0
    """Operations of a backward pass."""
    weights: float = 0.0
    """Operations of the backward pass for the gradients of weights."""

    @property
    def training(self) -> float:
        """Operations of both passes."""
        return self.forward + self.backward

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(
            forward=self.forward + other.forward, backward=self.backward + other.backward, weights=self.weights + other.weights
        )

    def __mul__(self, factor: float) -> "Flops":
        return Flops(forward=self.forward * factor, backward=self.backward * factor, weights=self.weights * factor)

    @property
    def frozen(self) -> "Flops":
        """The same where the weights are frozen and the input needs a gradient."""
        return Flops(forward=self.forward, backward=self.backward - self.weights)

    @property
    def without_gradient(self) -> "Flops":
        """The same where nothing needs a gradient."""
        return Flops(forward=self.forward)


class AdaptedLayer(NamedTuple):
    """A linear layer with a LoRA."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class LoraSizes:
    """Sizes of what a LoRA adds to a frozen network."""

    layers: tuple[AdaptedLayer, ...]
    rank: int
    dora: bool = False

    @property
    def tensors(self) -> list[int]:
        """The number of values of each of its tensors."""
        sizes = [self.rank * side for layer in self.layers for side in (layer.inputs, layer.outputs)]
        return sizes + ([layer.outputs for layer in self.layers] if self.dora else [])

    @property
    def num_parameters(self) -> int:
        """Number of its values."""
        return sum(self.tensors)


@dataclass(frozen=True)
class ControlSizes:
    """Sizes of a control, which is trained next to a frozen network."""

    num_blocks: int
    """Copied blocks."""
    tensors: tuple[int, ...]
    """The number of values of each of its tensors."""

    @property
    def num_parameters(self) -> int:
        """Number of its values."""
        return sum(self.tensors)


AdaptationSizes = LoraSizes | ControlSizes
"""Sizes of what is trained in place of a network's weights."""


def dit_flops(
    config: DiTConfig,
    *,
    grid: tuple[int, int],
    caption_tokens: float = 0.0,
    routed: RoutedBlocks | None = None,
    adapted: AdaptationSizes | None = None,
) -> dict[str, Flops]:
    """Operations of an image of a grid (h, w) of patches with this many caption tokens, by layer; blocks are summed up.

    `routed`: blocks that see a part of the tokens; `adapted`: the network is frozen, and this alone is trained.
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
    if isinstance(adapted, ControlSizes):
        return _controlled(layers, config, adapted.num_blocks, num=num, caption_tokens=caption_tokens)
    return layers if adapted is None else _adapted(layers, config, adapted, num=num, caption_tokens=caption_tokens)


def total(layers: Mapping[str, Flops]) -> Flops:
    """Sum of all layers."""
    return sum(layers.values(), start=Flops())


def training_flops(
    config: DiTConfig,
    *,
    grid: tuple[int, int],
    caption_tokens: float = 0.0,
    routed: RoutedBlocks | None = None,
    adapted: AdaptationSizes | None = None,
) -> float:
    """Operations that training on one image takes, forward and backward."""
    return total(dit_flops(config, grid=grid, caption_tokens=caption_tokens, routed=routed, adapted=adapted)).training


def _adapted(
    layers: Mapping[str, Flops], config: DiTConfig, lora: LoraSizes, *, num: int, caption_tokens: float
) -> dict[str, Flops]:
    """The layers of a frozen network, and those of its LoRA, as if no block were routed."""
    names = [layer.name for layer in lora.layers]
    text_is_trained = any(name.startswith(("text_adapter.", "y_embedder.")) for name in names)
    early = {"patches", "conditions", *(() if text_is_trained else ("captions", "text-adapter"))}
    result = {name: flops.without_gradient if name in early else flops.frozen for name, flops in layers.items()}
    if config.conditioning == "text" and not text_is_trained:  # keys and values of captions need no gradient of their input
        captions = _linear(caption_tokens, config.width, 2 * config.width).forward * config.depth
        result["cross-attention"] += Flops(backward=-captions)
    result["lora"] = Flops()
    for name, inputs, outputs in lora.layers:
        of_captions = name.startswith(("text_adapter.", "y_embedder.")) or name.endswith("cross_attn.kv_linear")
        of_patches = name.startswith(("blocks.", "final_layer.")) and "adaLN" not in name
        rows = caption_tokens if of_captions else num if of_patches else 1
        reads_data = of_captions and not text_is_trained
        result["lora"] += _linear(rows, inputs, lora.rank, reads_data=reads_data) + _linear(rows, lora.rank, outputs)
    return result


def _controlled(
    layers: Mapping[str, Flops], config: DiTConfig, num_copies: int, *, num: int, caption_tokens: float
) -> dict[str, Flops]:
    """The layers of a frozen network and of its control; what is before the first copy's output makes no gradient."""
    early = {"patches", "conditions", "captions", "text-adapter"}
    result = {name: flops.without_gradient if name in early else flops.frozen for name, flops in layers.items()}
    result["patches"] *= 2  # those of the control image too
    for name, flops in _blocks(_first_blocks(config, 1), num, caption_tokens).items():
        result[name] += Flops(backward=-flops.frozen.backward)
    # Captions need no gradient: the copies' keys and values none of their input, those of the other frozen blocks none at all.
    captions = _linear(caption_tokens, config.width, 2 * config.width).forward
    unneeded = captions + _attention(num, caption_tokens, config.width).forward
    result["cross-attention"] += Flops(backward=-unneeded * (config.depth - 1))
    around = _linear(num, config.width, config.width, reads_data=True) + _linear(num, config.width, config.width) * num_copies
    copies = _blocks(_first_blocks(config, num_copies), num, caption_tokens)
    result["control"] = total(copies) + around + Flops(backward=-captions * num_copies)
    return result


def _first_blocks(config: DiTConfig, num: int) -> DiTConfig:
    """A network of the first blocks alone."""
    layers = tuple(layer for layer in config.kv_compression.layers if layer < num)
    return replace(config, depth=num, kv_compression=replace(config.kv_compression, layers=layers))


def _blocks(config: DiTConfig, num: int, caption_tokens: float) -> dict[str, Flops]:
    """The layers of all blocks on this many tokens."""
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
    return Flops(forward=forward, backward=forward if reads_data else 2 * forward, weights=forward)


def _attention(queries: float, keys: float, width: int) -> Flops:
    """Scores and the sum of values."""
    forward = 4.0 * queries * keys * width
    return Flops(forward=forward, backward=2 * forward)


def _self_attention(config: DiTConfig, num: int) -> Flops:
    """Self-attention of all blocks; compressed ones first reduce keys and values, each by a depthwise convolution."""
    width, compression = config.width, config.kv_compression
    projections = _linear(num, width, 3 * width) + _linear(num, width, width)
    full = _attention(num, num, width)
    convolutions = Flops(forward=2.0 * num * width, backward=4.0 * num * width, weights=2.0 * num * width) * 2
    compressed = _attention(num, num / compression.factor**2, width) + convolutions
    num_compressed = len(compression.layers)
    return projections * config.depth + full * (config.depth - num_compressed) + compressed * num_compressed


def _adapter_block(config: DiTConfig, num: float) -> Flops:
    """A block of the text adapter on a caption of this many tokens."""
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
