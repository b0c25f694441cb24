"""The warm-up of llava-mini's vision tower: every patch says what it shows.

Captions alone teach a vision tower slowly: most of their loss is about phrasing. With the kind, size and place of the object
on each patch, and the background's colour and pattern, as labels, the tower learns to see in minutes.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from examples.openmoji.training_batches import IGNORED, LABEL_SIZES, Batch

if TYPE_CHECKING:
    from transformers import CLIPVisionModel


class PatchLabeller(nn.Module):
    """A vision tower with a linear head on each of its patches."""

    def __init__(self, tower: "CLIPVisionModel") -> None:
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(tower.config.hidden_size, sum(LABEL_SIZES.values()))

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, 64, 64) in -1..1 -> logits (B, 64, sum of LABEL_SIZES)."""
        hidden: Tensor = self.tower(pixel_values=pixels).last_hidden_state[:, 1:]  # (B, 64, D), without the class token
        logits: Tensor = self.head(hidden)
        return logits


@dataclass(frozen=True, kw_only=True)
class PatchFigures:
    """Loss and, for each label, the share of patches that were right."""

    loss: Tensor
    accuracy: dict[str, float]


def normalized(pixels: Tensor) -> Tensor:
    """uint8 pixels as the image processor makes them: float32 in -1..1."""
    return pixels.float().div_(127.5).sub_(1.0)


def patch_figures(model: nn.Module, batch: Batch) -> PatchFigures:
    """The mean of the labels' cross entropies, the kind's counted three times, and the accuracies."""
    assert batch.patch_labels is not None
    logits = model(normalized(batch.pixels)).float()
    loss = torch.zeros(())
    accuracy = {}
    for number, (name, part) in enumerate(zip(LABEL_SIZES, logits.split(list(LABEL_SIZES.values()), dim=-1), strict=True)):
        answer = batch.patch_labels[..., number]
        weight = 3.0 if name == "kind" else 1.0
        loss = loss + weight * cross_entropy(part.flatten(0, 1), answer.flatten(), ignore_index=IGNORED)
        asked = answer > 0 if name == "kind" else answer != IGNORED
        accuracy[name] = (part.argmax(-1) == answer)[asked].float().mean().item()
    return PatchFigures(loss=loss / (len(LABEL_SIZES) + 2), accuracy=accuracy)
