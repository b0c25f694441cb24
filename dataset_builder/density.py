"""Command that prints the concept density (the paper's Table 1) of runs, data sets and Parquet files side by side.

python -m dataset_builder.density RUN                                      the captions, one row per prompt
python -m dataset_builder.density RUN --column alt_text caption            alt text next to captions
python -m dataset_builder.density RUN other/captions.parquet --json
"""

from dataclasses import dataclass

from dataset_builder.reports.density_settings import DensitySettings
from foundry.command_line import run_command


@dataclass(frozen=True, kw_only=True)
class DensityConfig(DensitySettings):
    """All settings of `python -m dataset_builder.density`. Raises ValueError as DensitySettings does."""

    json: bool = False
    """Print one line of JSON instead of the table."""


def main(config: DensityConfig) -> int:
    """Prints the table or the JSON and returns 0."""
    from dataset_builder.reports.density_rows import density_rows
    from dataset_builder.reports.density_table import density_json, density_table

    rows, sample_size = density_rows(config)
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
