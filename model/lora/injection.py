"""Injection of an adapter into a network by peft, to be trained there: layers, weights to and from it.

peft wraps a linear layer: its weight becomes `<layer>.base_layer.weight`, the adapter's `<layer>.lora_A.default.weight`, and so
on. A fused projection (queries, keys and values) is one layer: its parts share `down`.
"""

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn

from foundry.errors import UserError
from model.dit import DiT
from model.dit_config import DiTConfig
from model.flops import AdaptedLayer, LoraSizes
from model.layers.int8 import dequantised
from model.layers.matrices import block_matrices
from model.layers.quantised import quantise_blocks
from model.lora.adapter import LayerAdapter
from model.lora.settings import Injection

_NAME = "default"
_BASE = ".base_layer"
_DOWN, _UP = f".lora_A.{_NAME}.weight", f".lora_B.{_NAME}.weight"
_MAGNITUDE = f".lora_magnitude_vector.{_NAME}.weight"


def inject(network: DiT, injection: Injection, *, seed: int) -> None:
    """Freezes the network and puts a new adapter into it, which changes nothing yet; deterministic for a seed.

    Raises UserError for targets that it has not.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    layers = target_layers(network, injection.targets)
    if injection.base == "int8":
        quantise_blocks(network, "int8")
    config = LoraConfig(
        r=injection.rank,
        lora_alpha=injection.alpha,  # peft divides it, and takes any number
        target_modules=list(layers),
        lora_dropout=injection.dropout,
        use_dora=injection.dora,
        use_rslora=injection.rslora,
    )
    with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
        torch.manual_seed(seed)
        inject_adapter_in_model(config, network, adapter_name=_NAME)
    for module in network.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False  # autocast does it, without a copy in float32
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.endswith((_DOWN, _UP, _MAGNITUDE)))


def target_layers(network: nn.Module, targets: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the linear layers to adapt. Raises UserError for a target that is none, with those that there are."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not targets:
        matrices = block_matrices(network)
        return tuple(name for name in linear if f"{name}.weight" in matrices)
    if unknown := [target for target in targets if not any(_is_of(name, target) for name in linear)]:
        known = sorted({".".join(part for part in name.split(".") if not part.isdecimal()) for name in linear})
        ends = ", ".join(dict.fromkeys(name.removeprefix("blocks.") for name in known))
        raise UserError(
            f"the network has no linear layer {unknown[0]}: expected the end of one's name, as of {ends}",
            setting="lora.targets",
        )
    return tuple(name for name in linear if any(_is_of(name, target) for target in targets))


@lru_cache
def lora_sizes(config: DiTConfig, injection: Injection) -> LoraSizes:
    """The layers that an adapter has in the network of a configuration. Raises UserError as target_layers does."""
    with torch.device("meta"):
        network = DiT(config)
    modules = dict(network.named_modules())
    found = [(name, modules[name]) for name in target_layers(network, injection.targets)]
    layers = [
        AdaptedLayer(name, module.in_features, module.out_features) for name, module in found if isinstance(module, nn.Linear)
    ]
    return LoraSizes(tuple(layers), injection.rank, injection.dora)


def trained_layers(weights: Mapping[str, Tensor], injection: Injection) -> dict[str, LayerAdapter]:
    """The adapter among a network's tensors, by layer."""
    layers = [name.removesuffix(_DOWN) for name in weights if name.endswith(_DOWN)]
    return {
        layer: LayerAdapter(
            down=weights[layer + _DOWN],
            up=weights[layer + _UP],
            alpha=injection.alpha,
            magnitude=weights.get(layer + _MAGNITUDE),
        )
        for layer in layers
    }


def base_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the network without its adapter, under its own names; matrices in 8 bits are expanded."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        layer, _, kind = name.rpartition(".")
        own = layer.removesuffix(_BASE)
        if kind == "codes":
            found[f"{own}.weight"] = dequantised(tensor, weights[f"{layer}.scale"])
        elif not name.endswith((_DOWN, _UP, _MAGNITUDE)) and not (kind == "scale" and f"{layer}.codes" in weights):
            found[f"{own}.{kind}"] = tensor
    return found


def _is_of(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
