"""What a benchmark is to `trainer.evaluate`: prompts, judges that score image by image, and a distance between sets of images.

A benchmark is a module with a function `open_benchmark(config: EvaluateConfig) -> Benchmark`, named in BENCHMARKS of
trainer/evaluation_config.py. Everything heavy stands behind a function, and is loaded when there is something to do for it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One thing to draw."""

    text: str
    """Unique within the benchmark: with the seed, it names the image."""
    category: str
    """Under which its scores are summed up."""
    held_out: bool = False
    """Whether it asks for a combination that training has not seen."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a judge finds of one image."""

    values: Mapping[str, float]
    """By metric; only those that apply to the prompt."""
    seen: str = ""
    """What the judge saw or answered, for the reader."""


class Judge(Protocol):
    """Scores images, each by itself."""

    def __call__(self, images: "Sequence[Pixels]", prompts: Sequence[Prompt]) -> Sequence[Verdict]:
        """A verdict on each image, uint8 RGB (H, W, 3), and its prompt, in order."""
        ...


class Embedding(Protocol):
    """A fixed network that a Fréchet distance is taken by."""

    def __call__(self, images: "Sequence[Pixels]") -> "npt.NDArray[np.float64]":
        """Features (N, D) of images, uint8 RGB (H, W, 3)."""
        ...


@dataclass(frozen=True, kw_only=True)
class JudgeSource:
    """A judge that is not loaded yet."""

    version: str
    """Changes when its verdicts may: with its weights or thresholds."""
    load: Callable[[], Judge]
    """Raises UserError where it cannot be had."""


@dataclass(frozen=True, kw_only=True)
class TrueImages:
    """Images that fulfil the prompts: what the judges make of them is the most that a generated image can reach."""

    of: "Callable[[Prompt], Pixels]"
    """The true image of a prompt."""
    others: "Callable[[Prompt], Pixels]"
    """A true image of another prompt of the same kind: the distance between two true sets, to compare with."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Prompts with those who judge what was drawn of them."""

    name: str
    prompts: tuple[Prompt, ...]
    """In the order in which they are drawn."""
    judges: Mapping[str, JudgeSource]
    """By name."""
    metric_of: Mapping[str, str]
    """The metric by which a category is judged first."""
    true_images: TrueImages | None = None
    """Where the benchmark knows what is right."""
    embeddings: Mapping[str, Callable[[], Embedding]] = field(default_factory=dict)
    """By name: each gives a Fréchet distance from the true images."""
