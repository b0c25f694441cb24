"""Aesthetic predictor of LAION: from a CLIP embedding to how much people liked such images, about 1 to 10.

Source: christophschuhmann/improved-aesthetic-predictor, sac+logos+ava1-l14-linearMSE: linear layers 768, 1024, 128, 64, 16, 1
on embeddings of length 1 by OpenAI's ViT-L/14, without activations between them; dropout matters to training alone.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.errors import UserError

if TYPE_CHECKING:
    import torch

# The indices of the linear layers among the dropouts of the published module.
_LAYERS = (0, 2, 4, 6, 7)
_CONVERT = (
    "save the published .pth as safetensors first: "
    "safetensors.torch.save_file(torch.load(PTH, weights_only=True), 'aesthetic.safetensors')"
)


class AestheticPredictor:
    """The loaded layers. `width` is that of the embeddings that it reads."""

    def __init__(self, path: str) -> None:
        """Raises UserError for a file that is not there, is not safetensors, or holds another network."""
        self._layers = _checked(_load(path), path)
        self.width = int(self._layers[0][0].shape[1])

    def to(self, device: "torch.device") -> "AestheticPredictor":
        """Moves the layers; returns itself."""
        self._layers = [(weight.to(device), bias.to(device)) for weight, bias in self._layers]
        return self

    def __call__(self, embeddings: "torch.Tensor") -> "torch.Tensor":
        """Scores, (N,), of embeddings of length 1, float32 (N, width)."""
        from torch.nn import functional

        hidden = embeddings
        for weight, bias in self._layers:
            hidden = functional.linear(hidden, weight, bias)  # (N, 1024), (N, 128), (N, 64), (N, 16), (N, 1)
        return hidden.squeeze(1)


def _load(path: str) -> "dict[str, torch.Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise UserError(f"there is no aesthetic predictor {path}: give a safetensors file")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not safetensors ({error}): {_CONVERT}") from None


def _checked(weights: "Mapping[str, torch.Tensor]", path: str) -> "list[tuple[torch.Tensor, torch.Tensor]]":
    """Weight and bias of each layer, in float32."""
    expected = {f"layers.{layer}.{part}" for layer in _LAYERS for part in ("weight", "bias")}
    if set(weights) != expected:
        different = ", ".join(sorted(set(weights) ^ expected)[:4])
        raise UserError(f"{path} is not LAION's aesthetic predictor: it differs in {different}; give its linearMSE weights")
    layers = [(weights[f"layers.{layer}.weight"].float(), weights[f"layers.{layer}.bias"].float()) for layer in _LAYERS]
    widths = [(weight.shape[1], weight.shape[0]) for weight, _ in layers]
    fits = all(before[1] == after[0] for before, after in pairwise(widths))
    if not fits or widths[-1][1] != 1:
        raise UserError(f"{path} is not LAION's aesthetic predictor: its layers are {widths}; give its linearMSE weights")
    return layers
