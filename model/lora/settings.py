"""Settings of adapters, without torch: how one is made, and which ones a command adds to a network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

BaseFormat = Literal["float32", "int8"]


@dataclass(frozen=True, kw_only=True)
class Injection:
    """An adapter as it is trained."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = ()
    """Ends of the names of the layers to adapt, as attn.qkv; empty: the matrices of attention and MLPs of all blocks."""
    dropout: float = 0.0
    """Share of the layers' inputs that the adapter does not see."""
    dora: bool = False
    rslora: bool = False
    base: BaseFormat = "float32"
    """Number format of the frozen matrices of the blocks."""


@dataclass(frozen=True)
class LoraChoice:
    """An adapter to add to a network."""

    path: str
    """Run or checkpoint of a LoRA training, a .safetensors file, or a folder of peft."""
    scale: float = 1.0
    """Factor of its change; 0: none, negative: away from it."""

    @classmethod
    def parse(cls, text: str) -> "LoraChoice":
        """Parses PATH or PATH:SCALE. Raises ValueError as path_and_scale."""
        return cls(*path_and_scale(text, name="lora"))


def path_and_scale(text: str, *, name: str) -> tuple[str, float]:
    """Parses PATH or PATH:SCALE, the value of the setting `name`; the scale is 1 where none is given.

    Raises ValueError for a scale that is not a number, and for an empty path.
    """
    path, colon, scale = text.rpartition(":")
    if not colon or "/" in scale:
        path, scale = text, "1"
    try:
        value = float(scale)
    except ValueError:
        raise ValueError(f"{name}: expected PATH or PATH:SCALE, found {text}: {scale} is not a number") from None
    if not path.strip() or not math.isfinite(value):
        raise ValueError(f"{name}: expected PATH or PATH:SCALE with a finite scale, found {text!r}")
    return path, value


def parse_choices(texts: Sequence[str]) -> tuple[LoraChoice, ...]:
    """Each of them, in order. Raises ValueError if one is wrong, or named twice."""
    choices = tuple(LoraChoice.parse(text) for text in texts)
    paths = [choice.path for choice in choices]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise ValueError(f"lora: {twice[0]} is given twice: give it once, with the sum of the scales")
    return choices
