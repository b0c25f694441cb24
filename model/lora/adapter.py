"""LoRA adapter: a low-rank change for each of some linear layers, which is added to their weights.

    change = scaling * up @ down                                                   LoRA
    change = magnitude * (W + scaling * up @ down) / its row norms - W             DoRA
    scaling = alpha / rank, or alpha / sqrt(rank)                                  rsLoRA

Several adapters of one network add up: W + sum of scale * change, each change being that of the network's own W.
Deviation: peft multiplies a DoRA's scaling by the scale, inside the norm; here its change is, so that 0 is the network itself.
Source: LoRA (arXiv 2106.09685), rsLoRA (2312.03732), DoRA (2402.09353).
Shapes: O outputs, I inputs, r rank of a layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foundry.errors import UserError
from model.dit_config import FewSteps
from model.encoders.frozen_parts import fingerprint


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerAdapter:
    """The change of one linear layer."""

    down: Tensor
    """(r, I)"""
    up: Tensor
    """(O, r)"""
    alpha: float
    """Numerator of the scaling."""
    magnitude: Tensor | None = None
    """(O,) row norms of the changed weight (DoRA); none: LoRA."""

    @property
    def rank(self) -> int:
        """r"""
        return len(self.down)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Its tensors by their names in files."""
        yield "lora_A.weight", self.down
        yield "lora_B.weight", self.up
        if self.magnitude is not None:
            yield "lora_magnitude_vector", self.magnitude


@dataclass(frozen=True, eq=False, kw_only=True)
class Adapter:
    """Changes of layers of one network, and what is known about it."""

    what: ClassVar[str] = "LoRA"
    """Name of its kind, for messages."""
    layers: Mapping[str, LayerAdapter]
    """Changes by our name of the layer, as blocks.0.attn.qkv."""
    rslora: bool = False
    """Whether the scaling is alpha / sqrt(rank)."""
    base: str = ""
    """Checkpoint that was adapted: a folder, or `mini`; empty: unknown."""
    base_fingerprint: str = ""
    """Fingerprint of its weights; empty: unknown."""
    trigger_word: str = ""
    """Word of the prompts that asks for what was learned; empty: none."""
    few_steps: FewSteps | None = None
    """Few steps that it distils the network to; none: it is no such adapter."""

    @property
    def rank(self) -> int:
        """The largest rank of a layer."""
        return max(layer.rank for layer in self.layers.values())

    @property
    def dora(self) -> bool:
        """Whether it is a DoRA."""
        return any(layer.magnitude is not None for layer in self.layers.values())

    @property
    def num_parameters(self) -> int:
        """Number of its values."""
        return sum(tensor.numel() for layer in self.layers.values() for _, tensor in layer.tensors())

    def scaling(self, name: str) -> float:
        """Factor of up @ down of a layer."""
        layer = self.layers[name]
        return layer.alpha / (layer.rank**0.5 if self.rslora else layer.rank)

    def change(self, name: str, weight: Tensor) -> Tensor:
        """(O, I) what it adds to a layer's weight (O, I), in float32 or the weight's dtype if that is wider."""
        layer, dtype = self.layers[name], torch.promote_types(weight.dtype, torch.float32)
        down, up = (part.to(weight.device, dtype) for part in (layer.down, layer.up))
        change: Tensor = self.scaling(name) * (up @ down)  # (O, I)
        if layer.magnitude is None:
            return change
        whole = weight.to(dtype) + change
        factor: Tensor = layer.magnitude.to(whole) / whole.norm(dim=1)  # (O,)
        return factor[:, None] * whole - weight.to(dtype)

    def fingerprint(self) -> str:
        """Tells it from other adapters, and from the same one on another base."""
        named = ((f"{name}.{part}", tensor) for name, layer in self.layers.items() for part, tensor in layer.tensors())
        scalings = ",".join(f"{name}={self.scaling(name):.6g}" for name in sorted(self.layers))
        return fingerprint(named, also=f"{self.base_fingerprint} {scalings}")


@dataclass(frozen=True, eq=False, kw_only=True)
class ScaledAdapter:
    """An adapter as it is added to a network."""

    adapter: Adapter
    scale: float = 1.0
    """Factor of its change."""
    source: str
    """Path that it was read from, for messages."""


def with_adapters(
    state: Mapping[str, Tensor], adapters: Sequence[ScaledAdapter], *, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """A network's tensors with all adapters added to its weights, in `dtype` (default: as they are).

    Sums are made in float32 or wider and rounded once. Raises UserError for an adapter of another network.
    """
    for one in adapters:
        check_fits(one, state)
    result = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    for layer in sorted({name for one in adapters for name in one.adapter.layers}):
        weight = state[f"{layer}.weight"]
        changes = [one.scale * one.adapter.change(layer, weight) for one in adapters if layer in one.adapter.layers]
        result[f"{layer}.weight"] = (weight + torch.stack(changes).sum(0)).to(dtype or weight.dtype)
    return result


def check_fits(adapter: ScaledAdapter, state: Mapping[str, Tensor]) -> None:
    """Raises UserError, by name, for layers that a network lacks, or has in another size."""
    for name, layer in adapter.adapter.layers.items():
        found = state.get(f"{name}.weight")
        shape = (len(layer.up), layer.down.shape[1])
        if found is None or tuple(found.shape) != shape:
            has = "no such layer" if found is None else f"{found.shape[0]} x {found.shape[1]}"
            raise UserError(
                f"{adapter.source} is a LoRA of another network: it adapts {name} of {shape[0]} x {shape[1]} values, and the "
                f"checkpoint has {has}",
                setting="lora",
            )
