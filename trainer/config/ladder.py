"""Ladder of resolutions that a stage trains, and positions in it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One step of a stage's ladder of resolutions."""

    resolution: int
    """Side of a square image in pixels; FEATURES/<stage>/<resolution> holds its features."""
    images: int
    """Images seen in training, counting repetitions; the last batch may exceed it."""
    batch_size: int
    """Images per optimiser step, over all workers."""
    position_scale: float | None = None
    """Divisor of positions; none: that of the previous resolution, interpolated (1 at the first resolution of a new
    network)."""

    def __post_init__(self) -> None:
        wrong = [name for name in ("resolution", "images", "batch_size") if getattr(self, name) < 1]
        if wrong or (self.position_scale is not None and self.position_scale <= 0):
            raise ValueError(f"ladder, {self.resolution} px: expected positive {', '.join(wrong) or 'position_scale'}")

    @property
    def num_steps(self) -> int:
        """Optimiser steps."""
        return -(-self.images // self.batch_size)

    @property
    def images_seen(self) -> int:
        """Images of these steps: a multiple of the batch size."""
        return self.num_steps * self.batch_size


@dataclass(frozen=True, kw_only=True)
class LadderPosition:
    """A position in a stage's ladder."""

    index: int
    """Index of the rung."""
    rung: Rung
    images_before: int
    """Images of the rungs before it."""


def ladder_position(ladder: tuple[Rung, ...], images_seen: int) -> LadderPosition | None:
    """The rung that trains the next image; None if the stage is done."""
    before = 0
    for index, rung in enumerate(ladder):
        if images_seen < before + rung.images_seen:
            return LadderPosition(index=index, rung=rung, images_before=before)
        before += rung.images_seen
    return None
