"""Adapters of the image server: read once, added to the network's weights and taken out again between requests.

The weights are those that `model.generate` computes for the same adapters: sums are made of the stored weights, never of
weights that were changed already.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from model.formats.adapters import open_adapters
from model.formats.checkpoint import load_checkpoint
from model.layers.quantised import holds_quantised, put_weight
from model.lora.adapter import Adapter, ScaledAdapter, with_adapters
from model.lora.settings import LoraChoice

AdapterScales = tuple[tuple[str, float], ...]
"""Adapters that are added together: names and scales, by name."""


class NamedAdapters:
    """Adapters by name, of one checkpoint."""

    def __init__(self, choices: Mapping[str, LoraChoice], checkpoint: str | Path) -> None:
        """Reads the adapters, and the weights of the layers that they change. Raises UserError as open_adapters does."""
        opened = open_adapters(list(choices.values()), checkpoint)
        self._adapters: dict[str, Adapter] = {name: one.adapter for name, one in zip(choices, opened, strict=True)}
        self.scales = {name: choice.scale for name, choice in choices.items()}
        """Scale of each, where a request gives none."""
        self.few_steps = {name: one.few_steps for name, one in self._adapters.items() if one.few_steps is not None}
        """Few steps of those that distil the network, which change how a request is sampled."""
        layers = {layer for adapter in self._adapters.values() for layer in adapter.layers}
        self._stored: dict[str, Tensor] = {}
        if layers:
            state = load_checkpoint(checkpoint)[0].state_dict()
            self._stored = {layer: state[f"{layer}.weight"] for layer in layers}
        self._added: AdapterScales = ()

    def scaled(self, scales: AdapterScales) -> list[ScaledAdapter]:
        """The adapters of these names."""
        return [ScaledAdapter(adapter=self._adapters[name], scale=scale, source=name) for name, scale in scales]

    def add(self, scales: AdapterScales, network: nn.Module) -> bool:
        """Makes these the adapters of the network, in place of those that it has; whether anything changed."""
        if scales == self._added:
            return False
        adapters = self.scaled(scales)
        changed = {layer for one in (*adapters, *self.scaled(self._added)) for layer in one.adapter.layers}
        with torch.no_grad():
            dtype = None if holds_quantised(network) else next(network.parameters()).dtype  # as open_pipeline adds them
            weights = with_adapters({f"{layer}.weight": self._stored[layer] for layer in changed}, adapters, dtype=dtype)
            for layer in changed:
                put_weight(network, layer, weights[f"{layer}.weight"])
        self._added = scales
        return True
