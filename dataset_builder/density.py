"""Command that prints the concept density (the paper's Table 1) of runs, data sets and Parquet files side by side.

python -m dataset_builder.density RUN                                      the captions, one row per prompt
python -m dataset_builder.density RUN --column alt_text caption            alt text next to captions
python -m dataset_builder.density RUN other/captions.parquet --json
"""

from dataclasses import dataclass, field

from dataset_builder.concepts.t5_view import T5Config
from dataset_builder.concepts.tagger import TaggerConfig
from foundry.command_line import run_command


@dataclass(frozen=True, kw_only=True)
class DensityConfig:
    """Raises ValueError for no sources, no columns or a number below 1."""

    sources: tuple[str, ...]
    """Captioning runs, data sets, Parquet files or folders of Parquet files; local paths or fsspec URLs."""
    column: tuple[str, ...] = ("caption",)
    """Text columns to count, one row each; of a run, any column of `captions` and `images`, including those of its sources."""
    sample_size: int | None = None
    """Number of captions in the samples used to compare rows; default: that of the smallest row."""
    json: bool = False
    """Print one line of JSON instead of the table."""
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


def main(config: DensityConfig) -> int:
    """Prints the table or the JSON and returns 0."""
    from dataset_builder.reports.density_rows import choose_sample_size, counted_texts, density_row
    from dataset_builder.reports.density_table import density_json, density_table

    texts = list(
        counted_texts(config.sources, columns=config.column, tagger=config.tagger, t5=config.t5, num_workers=config.num_workers)
    )
    sample_size = choose_sample_size(texts, wanted=config.sample_size)
    rows = [density_row(text, sample_size=sample_size) for text in texts]
    show = density_json if config.json else density_table
    print(show(rows, sample_size=sample_size))
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            DensityConfig,
            main,
            prog="python -m dataset_builder.density",
            example="python -m dataset_builder.density RUN --column alt_text caption",
            positional=("sources",),
        )
    )
