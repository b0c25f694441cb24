"""Packed captions: the tokens of a batch one caption after the other, without padding, and their places side by side.

Shapes: B samples, T caption tokens of the whole batch, L tokens of its longest caption, F channels of the text encoder, D
width, C channels of any kind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Captions:
    """The tokens of a batch of captions, one caption after the other and no padding between them."""

    tokens: Tensor
    """(T, F), any float dtype, on any device."""
    lengths: Tensor
    """(B,) int64, on the CPU: shapes follow from it, and a device need not be asked. Sums to T; none is 0."""

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.lengths.ndim != 1:
            found = f"{list(self.tokens.shape)} and {list(self.lengths.shape)}"
            raise ValueError(f"captions: expected tokens (T, F) and lengths (B,), found {found}")
        if self.lengths.device.type != "cpu":
            object.__setattr__(self, "lengths", self.lengths.cpu())
        total, shortest = int(self.lengths.sum()), int(self.lengths.min()) if len(self.lengths) else 1
        if total != len(self.tokens) or shortest < 1:
            raise ValueError(
                f"captions: expected lengths of 1 and more that sum to the {len(self.tokens)} tokens, "
                f"found a sum of {total} and a shortest of {shortest}"
            )

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def from_padded(cls, embeddings: Tensor, mask: Tensor) -> "Captions":
        """Packs embeddings (B, L, F) where mask (B, L) is true or not 0. Raises ValueError for a mask that does not fit."""
        if embeddings.ndim != 3 or mask.shape != embeddings.shape[:2]:
            found = f"mask {list(mask.shape)} and embeddings {list(embeddings.shape)}"
            raise ValueError(f"caption mask: expected a mask (B, L) for embeddings (B, L, F), found {found}")
        valid = mask != 0
        lengths = valid.sum(1).cpu()
        if empty := (lengths == 0).nonzero().flatten().tolist():
            raise ValueError(f"caption mask: expected a token in each row, found none in rows {empty}")
        return cls(tokens=embeddings[valid], lengths=lengths)

    @classmethod
    def cat(cls, batches: Sequence["Captions"]) -> "Captions":
        """The captions of all batches, in order."""
        return cls(
            tokens=torch.cat([batch.tokens for batch in batches]), lengths=torch.cat([batch.lengths for batch in batches])
        )

    def select(self, indices: Sequence[int]) -> "Captions":
        """Captions at these indices, in this order; an index may occur several times."""
        parts = self.tokens.split(self.lengths.tolist())
        return Captions(tokens=torch.cat([parts[index] for index in indices]), lengths=self.lengths[list(indices)])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Captions":
        """Copy with the tokens on another device or in another dtype."""
        return Captions(tokens=self.tokens.to(device=device, dtype=dtype, non_blocking=True), lengths=self.lengths)


class CaptionTokens(NamedTuple):
    """Projected captions as the blocks read them: computed once per forward."""

    tokens: Tensor
    """(T, D)"""
    num: int
    """B"""
    longest: int
    """L, a multiple of 8 where there is a mask: what GPU kernels ask of one."""
    slots: Tensor | None
    """(T,) the row of (B L) of each token; None if all captions are equally long: the tokens are (B, L) as they are."""
    bias: Tensor | None
    """(B, 1, 1, L) 0 at tokens and -inf behind them."""


def side_by_side(packed: Tensor, captions: CaptionTokens) -> Tensor:
    """Values of the packed tokens (T, C) with those of one caption in a row (B L, C); zeros behind shorter captions."""
    if captions.slots is None:
        return packed
    filled = packed.new_zeros(captions.num * captions.longest, packed.shape[1])
    return filled.index_copy(0, captions.slots, packed)


def packed_again(filled: Tensor, captions: CaptionTokens) -> Tensor:
    """The inverse of `side_by_side`: (B L, C) to (T, C)."""
    return filled if captions.slots is None else filled.index_select(0, captions.slots)
