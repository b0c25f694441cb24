"""Quantisation of a network's linear layers, in place: 8 bits with a scale for each output, or 4 bits by groups."""

from collections.abc import Iterable
from typing import Literal

from torch import Tensor, nn

from model.layers.int4 import Int4Linear
from model.layers.int8 import Int8Linear
from model.layers.matrices import block_matrices

WeightFormat = Literal["int8", "int4"]
_LAYERS: dict[WeightFormat, type[Int8Linear] | type[Int4Linear]] = {"int8": Int8Linear, "int4": Int4Linear}


def quantise_blocks(network: nn.Module, weights: WeightFormat) -> None:
    """Freezes the matrices of all blocks of a DiT: all but a few percent of its weights."""
    quantise_layers(network, [name.removesuffix(".weight") for name in block_matrices(network)], weights)


def quantise_layers(network: nn.Module, layers: Iterable[str], weights: WeightFormat) -> None:
    """Freezes the linear layers of these names."""
    for layer in list(layers):
        parent, _, own = layer.rpartition(".")
        linear = network.get_submodule(layer)
        assert isinstance(linear, nn.Linear)
        setattr(network.get_submodule(parent), own, _LAYERS[weights](linear))


def put_weight(network: nn.Module, layer: str, weight: Tensor) -> None:
    """Gives a linear layer, quantised or not, another weight (O, I)."""
    module = network.get_submodule(layer)
    if isinstance(module, Int8Linear | Int4Linear):
        module.store(weight)
    else:
        assert isinstance(module, nn.Linear)
        module.weight.data.copy_(weight)


def holds_quantised(network: nn.Module) -> bool:
    """Whether any layer is quantised."""
    return any(isinstance(module, Int8Linear | Int4Linear) for module in network.modules())
