"""Data: choice of samples and captions, and loading."""

import re
from dataclasses import dataclass, field
from typing import Literal

from trainer.config.check import Check

_QUERY = re.compile(r"\s*(SELECT|WITH|FROM)\s", re.IGNORECASE)

AspectRatio = Literal["bucket", "image"]


def is_query(source: str | None) -> bool:
    """Whether a source of samples is SQL, not a file."""
    return source is not None and _QUERY.match(source) is not None


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Settings of the captions that are read and of the loader."""

    caption_weights: dict[str, float] = field(default_factory=dict)
    """Weight of each caption variant, by name; one is drawn each time a sample is read. Empty: equal weights, and `alt_text`
    for images without a caption."""
    caption_dropout: float = 0.1
    """Share of samples trained with the null caption, or without a class, from 0 to 1. Source: the authors' code."""
    loader_threads: int = 2
    """Number of threads that read batches ahead; 0: read batches when needed. The order does not depend on it."""
    prefetch: int = 4
    """Number of batches to read ahead."""
    aspect_ratio: AspectRatio = "bucket"
    """Aspect ratio for micro-conditioning: that of the bucket to which an image is cropped, as in generation, or that of the
    original image. Source: the authors' code."""
    skip: str | None = None
    """Samples to leave out: a text file with a key on each line, Parquet with a column `key`, or a SQL query on the data set
    that returns a column `key`. It changes the order of the other samples."""
    weights: str | None = None
    """Weights of samples (how often each is seen per pass): Parquet with columns `key` and `weight`, or a SQL query on the data
    set that returns them. 0 is never, 2.5 two and three times alternately; samples without a weight have weight 1."""
    dataset: str | None = None
    """Data set or captioning run that the SQL of `skip` and `weights` queries; default: the one from which the features were
    made."""

    @property
    def paths(self) -> list[str]:
        """The files and folders that are named."""
        return [source for source in (self.skip, self.weights, self.dataset) if source and not is_query(source)]

    def checks(self) -> list[Check]:
        """Conditions on the values, for error messages."""
        return [
            ("caption_weights", "0 or more", all(weight >= 0 for weight in self.caption_weights.values())),
            ("caption_dropout", "from 0 to below 1", 0 <= self.caption_dropout < 1),
            ("loader_threads", "0 or more", self.loader_threads >= 0),
            ("prefetch", "1 or more", self.prefetch >= 1),
        ]
