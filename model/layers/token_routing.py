"""Token routing: most blocks of a forward pass see a random part of an image's tokens, the others pass them by unchanged.

    first blocks: all tokens ─► routed blocks: the kept ones ─► put back among the others ─► last blocks: all tokens

In training it saves operations (TREAD). Behind the last block the tokens that were skipped have no prediction if
no block follows (masking): the loss then counts the kept ones alone. In sampling a routed pass is a weaker network, which
guidance can lead away from.

Source: TREAD (Krause et al. 2025, arXiv 2501.04765); for masking behind a mixer MicroDiT (Sehwag et al. 2024, 2407.15811).
Shapes: B samples, N tokens, K kept ones, D width, C channels of any kind, h x w patches of p x p.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.dit_config import RoutedBlocks


@dataclass(frozen=True, eq=False)
class TokenRoute:
    """The tokens of a batch that the routed blocks see."""

    kept: Tensor
    """(B, K) int64, the indices of the tokens, ascending."""
    blocks: RoutedBlocks

    @classmethod
    def by_rank(cls, ranks: Tensor, blocks: RoutedBlocks) -> "TokenRoute":
        """Keeps the tokens of the lowest random numbers: ranks (B, N)."""
        kept = ranks.argsort(dim=1, stable=True)[:, : blocks.num_kept(ranks.shape[1])]
        return cls(kept.sort(1).values, blocks)

    def take(self, values: Tensor) -> Tensor:
        """Selects the kept tokens: (B, N, C) to (B, K, C)."""
        return values.gather(1, self._index(values))

    def put_back(self, values: Tensor, kept: Tensor) -> Tensor:
        """Values (B, N, C) with those of the kept tokens (B, K, C) in their places."""
        return values.scatter(1, self._index(kept), kept.to(values.dtype))

    def loss_mask(self, grid: tuple[int, int], patch_size: int) -> Tensor:
        """1 at the latent pixels of kept tokens, 0 elsewhere: (B, 1, h p, w p) float32."""
        mask = torch.zeros(len(self.kept), grid[0] * grid[1], device=self.kept.device).scatter(1, self.kept, 1.0)  # (B, N)
        square: Tensor = mask.unflatten(1, grid).repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)
        return square[:, None]

    def _index(self, values: Tensor) -> Tensor:
        return self.kept[:, :, None].expand(-1, -1, values.shape[2])
