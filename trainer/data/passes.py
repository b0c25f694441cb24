"""Passes over a data set: how often a stage sees each image, and a warning where that is too often. Imports no torch."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

MOST_PASSES = 50
"""Passes over a stage's images above which training warns: the network may memorise them."""


@dataclass(frozen=True)
class TrainingWarning:
    """A warning of a training, in two parts: its log says each fact once."""

    fact: str
    """The problem, in the same words at every start under the same settings, by which a repetition is recognised."""
    advice: str
    """The measurement or count, and the setting to change."""


def count_passes(rungs: Sequence[tuple[int, float]]) -> float:
    """Counts how often a stage sees each image, from the images seen and the images of a pass at each resolution."""
    return sum(images_seen / images_per_pass for images_seen, images_per_pass in rungs)


def passes_text(passes: float) -> str:
    """Number of passes to three digits, as in "each image is seen 12.5 times"."""
    return f"{passes:.3g}" if passes < 100 else f"{passes:,.0f}"


def passes_warning(stage: str, passes: float, *, num_images: int) -> TrainingWarning | None:
    """Warns of a stage that sees its images too often; None for one that does not."""
    if passes <= MOST_PASSES:
        return None
    times = passes_text(passes)
    return TrainingWarning(
        f"{stage} sees each of its {num_images:,} images {times} times",
        f"above {MOST_PASSES} times a network may memorise them; lower `images` in `ladder`, or train on more images",
    )


@dataclass(frozen=True)
class TrainingSamples:
    """Number of training samples of a feature store."""

    stored: int
    """All that are stored, those that are left out too."""
    per_pass: float
    """Images of a pass, in which each sample is seen as often as its weight says."""


def training_samples(url: str, *, skip: Collection[str] = (), weights: "pa.Table | None" = None) -> TrainingSamples | None:
    """Training samples of FEATURES/<stage>/<resolution>; None if none can be read, or none are made yet."""
    from foundry.errors import UserError
    from foundry.storage.folder import Folder, store_errors
    from trainer.features.plan import TRAIN
    from trainer.features.store import FeatureStore

    try:
        with store_errors(Folder(url)):
            whole = FeatureStore.open(url)
            chosen = FeatureStore.open(url, skip=skip, weights=weights) if skip or weights is not None else whole
            return TrainingSamples(stored=whole.num_samples(TRAIN), per_pass=chosen.images_per_pass(TRAIN))
    except UserError:
        return None
