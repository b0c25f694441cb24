"""A benchmark of `trainer.evaluate`: prompts, judges that score image by image, and metrics of all images together.

It is a module with a function `open_benchmark(config: EvaluateConfig) -> Benchmark`, named in BENCHMARKS of config.py or given
by its path. Everything heavy is behind a function, and is loaded when there is something to do for it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

ALL = "all prompts"
"""Instead of a category: over the images of every category."""
OVERALL = "overall"
"""Instead of a category: overall figures that a benchmark computes from those of its categories."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One thing to draw."""

    text: str
    """Text of the prompt; with the seed, it names the image: prompts of the same text share images."""
    category: str
    """Under which its scores are summed up."""
    held_out: bool = False
    """True where it asks for a combination that training has not seen."""
    data: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Facts for the judges besides the text, as plain JSON."""


@dataclass(frozen=True, kw_only=True)
class DrawnPrompts:
    """Prompts of which the images were drawn."""

    statement: str = "prompts: drawn as written"
    """Whether prompts were rewritten, by what, and how many: the line next to every score."""
    rewritten: Mapping[str, str] = field(default_factory=dict)
    """The prompts that images were drawn of, by the texts of the prompts that were rewritten."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A judge's findings on one image."""

    values: Mapping[str, float]
    """Values by metric; only those that apply to the prompt."""
    seen: str = ""
    """The judge's observation or answer, for the reader."""


class Judge(Protocol):
    """Scores images, each by itself."""

    def __call__(self, images: "Sequence[Pixels]", prompts: Sequence[Prompt]) -> Iterable[Verdict]:
        """A verdict on each image, uint8 RGB (H, W, 3), and its prompt, in order.

        Each is kept as it comes: a judge that takes long, or is paid, yields them one by one. Raises UserError.
        """
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
    """Loads the judge. Raises UserError if it is unavailable."""
    categories: frozenset[str] | None = None
    """Categories whose images it scores; None: all."""


class DerivedJudge(Protocol):
    """Makes one verdict on an image of those of other judges."""

    def __call__(self, prompt: Prompt, verdicts: Mapping[str, Verdict]) -> Verdict | None:
        """Derives a verdict from the others on one image, by judge; None if they do not allow it."""
        ...


@dataclass(frozen=True, kw_only=True)
class SetMetric:
    """Scores all images of an evaluation together, as a Fréchet distance from reference statistics does."""

    version: str
    """Changes when its figures may, as a judge's."""
    measure: "Callable[[Iterable[Pixels]], float]"
    """Measures images, uint8 RGB (H, W, 3), which are read one by one. Loads what it needs; raises UserError."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A figure that was published for another model, to compare ours with."""

    category: str
    """A category, ALL or OVERALL."""
    metric: str
    value: float
    source: str
    """The model and the publication."""
    differences: tuple[str, ...] = ()
    """Reasons why our figure cannot be compared with it."""
    reservations: tuple[str, ...] = ()
    """Further differences that are not known to matter; with neither, ours can be compared."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """The mean of a metric over the images of a category, by one judge."""

    category: str
    """A category, ALL or OVERALL."""
    judge: str
    metric: str
    num_images: int
    value: float
    standard_error: float | None = None
    """Standard error of the mean, from the spread of the prompts' means, since images of one prompt are alike; None if the
    value is no mean, or of one prompt."""
    held_out: float | None = None
    """Over the prompts of held-out combinations; None if there are none."""
    num_held_out: int = 0
    """Images of these."""
    held_out_error: float | None = None
    """Standard error of their mean."""
    ceiling: float | None = None
    """The same judge's score of true images of the same prompts; None if there are none."""
    published: Published | None = None
    """The published figure to compare it with."""


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
    """Prompts in the order in which they are drawn."""
    judges: Mapping[str, JudgeSource]
    """Entries by name."""
    metric_of: Mapping[str, str]
    """The metric by which a category is judged first."""
    num_images_per_prompt: int = 1
    """Unless the user asks for others."""
    judge_dtype: str | None = None
    """Number format of the judges, where it is fixed; None: that of --judge_dtype."""
    own_seeds: bool = False
    """Whether each prompt has its own seeds; else all prompts are drawn from the same noise, as is usual."""
    derived: Mapping[str, DerivedJudge] = field(default_factory=dict)
    """Judges by name that look at verdicts, not at images."""
    set_metrics: Mapping[str, SetMetric] = field(default_factory=dict)
    """Entries by name."""
    overall: Callable[[Sequence[Score]], Sequence[Score]] | None = None
    """Further figures, of category OVERALL, from those of the categories."""
    published: tuple[Published, ...] = ()
    """Published figures to compare those of the same category and metric with."""
    differences_of_answers: Callable[[], tuple[str, ...]] = tuple
    """Asked once all is judged: why published figures cannot be compared with ours, as the judges' answers tell."""
    true_images: TrueImages | None = None
    """Images that fulfil the prompts, where the benchmark knows them."""
    embeddings: Mapping[str, Callable[[], Embedding]] = field(default_factory=dict)
    """Embeddings by name: each gives a Fréchet distance from the true images."""
