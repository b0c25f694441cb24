"""Settings of controls, without torch: what a control image shows, how many blocks are copied, which control a command uses."""

from dataclasses import dataclass
from typing import Literal

from model.lora.settings import path_and_scale

ControlKind = Literal["none", "edges"]
EDGES = "edges/1"
"""Edge maps, and the version of the filter that computes them (edges.py)."""
CONDITIONS: dict[ControlKind, str] = {"none": "", "edges": EDGES}
"""What files record of control images of each kind."""
_PAPER_BLOCKS, _PAPER_DEPTH = 13, 28


@dataclass(frozen=True)
class ControlChoice:
    """A control to put into a network."""

    path: str
    """Run or checkpoint of a control training, a .safetensors file, or a folder of diffusers."""
    scale: float = 1.0
    """Factor of what it adds to the blocks; 0: the network without it."""

    @classmethod
    def parse(cls, text: str) -> "ControlChoice":
        """Parses PATH or PATH:SCALE. Raises ValueError for a scale that is not a number, and for an empty path."""
        return cls(*path_and_scale(text, name="control"))


def default_blocks(depth: int) -> int:
    """Blocks that are copied by default: 13 of 28 (PixArt-delta), in proportion, and at least 1."""
    return max(1, round(depth * _PAPER_BLOCKS / _PAPER_DEPTH))
