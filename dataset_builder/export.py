"""Command that exports a run or a data set as a DuckDB database of views, macros and comments, for any DuckDB client.

python -m dataset_builder.export RUN run.duckdb           then: duckdb run.duckdb "FROM density()"
python -m dataset_builder.export DATASET DATASET/dataset.duckdb --paths relative      moves with the folder
"""

import shlex
from dataclasses import dataclass

from dataset_builder.exports.database_file import PathKind, export_database
from foundry.command_line import run_command
from foundry.reporting.lines import say


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """All settings of `python -m dataset_builder.export`."""

    source: str
    """Folder or URL of a captioning run, finished or not, or of a data set."""
    out: str
    """Path of the database file to write."""
    paths: PathKind = "absolute"
    """Paths of the Parquet files in the database: absolute paths or URLs, which work from every folder on this machine, or
    paths relative to the folder of the database, in which DuckDB must then be started."""
    training: str | None = None
    """Folder of a training, RUN_DIR/<stage>, whose recorded losses are the view `losses`."""
    overwrite: bool = False
    """Replace an existing file, for example if the run has grown."""


def main(config: ExportConfig) -> int:
    """Writes the database and returns 0."""
    num_files = export_database(
        config.source, config.out, paths=config.paths, training=config.training, overwrite=config.overwrite
    )
    opened = shlex.quote(config.out)
    say(f"{config.out}: views and macros over {num_files:,} Parquet files; open it with: duckdb -readonly {opened}")
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            ExportConfig,
            main,
            prog="python -m dataset_builder.export",
            example="python -m dataset_builder.export runs/photos photos.duckdb",
            positional=("source", "out"),
        )
    )
