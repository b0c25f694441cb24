"""Settings of a measurement of concept density."""

from dataclasses import dataclass, field

from dataset_builder.concepts.t5_view import T5Config
from dataset_builder.concepts.tagger import TaggerConfig


@dataclass(frozen=True, kw_only=True)
class DensitySettings:
    """Raises ValueError for no sources, no columns or a number below 1."""

    sources: tuple[str, ...]
    """Captioning runs, data sets, Parquet files or folders of Parquet files; local paths or fsspec URLs."""
    column: tuple[str, ...] = ("caption",)
    """Text columns to count, one row each; of a run, any column of `captions` and `images`, including those of its sources."""
    sample_size: int | None = None
    """Number of captions in the samples used to compare rows; default: that of the smallest row."""
    tagger: TaggerConfig = field(default_factory=TaggerConfig)
    """Tagger for the nouns of Parquet files; columns of a run are tagged like its captions."""
    t5: T5Config = field(default_factory=T5Config)
    """Text encoder that cuts the texts of Parquet files; columns of a run are cut like its captions."""
    num_workers: int | None = None
    """Number of tagging processes; default: one per core."""

    def __post_init__(self) -> None:
        problems = []
        if not self.sources or not self.column:
            problems.append("give at least one source and one column")
        problems += [f"{name} must be at least 1" for name in ("sample_size", "num_workers") if (getattr(self, name) or 1) < 1]
        if problems:
            raise ValueError("; ".join(problems))
