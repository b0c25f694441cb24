"""Command that answers SQL queries about a captioning run, finished or not, or a data set; access is read-only.

python -m dataset_builder.query RUN "SELECT noun, count FROM noun_counts ORDER BY count DESC LIMIT 10"
python -m dataset_builder.query DATASET "FROM density()"
python -m dataset_builder.query RUN                      an interactive prompt
"""

from dataclasses import dataclass

from dataset_builder.sql.console import AnswerFormat, answer, converse
from foundry.command_line import run_command


@dataclass(frozen=True, kw_only=True)
class QueryConfig:
    """Raises ValueError for max_rows below 1."""

    run: str
    """Folder or URL of a captioning run or a data set."""
    sql: str = ""
    """SQL query, several separated by ;, or a command of the prompt such as \\d captions. Default: an interactive prompt."""
    training: str | None = None
    """Folder of a training, RUN_DIR/<stage>, whose recorded losses are the view `losses`."""
    format: AnswerFormat = "table"
    """Output format: a box, CSV with a header, or a JSON array with one row per line."""
    max_rows: int = 40
    """Maximum number of rows that a box shows, from both ends of a longer result. CSV and JSON show all."""

    def __post_init__(self) -> None:
        if self.max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, found {self.max_rows}")


def main(config: QueryConfig) -> int:
    """Prints the answers and returns 0."""
    from dataset_builder.sql.dataset_files import open_stored

    with open_stored(config.run, training=config.training) as database:
        if config.sql.strip():
            answer(database, config.sql, answer_format=config.format, max_rows=config.max_rows)
            return 0
    converse(config.run, training=config.training, answer_format=config.format, max_rows=config.max_rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            QueryConfig,
            main,
            prog="python -m dataset_builder.query",
            example='python -m dataset_builder.query RUN "SELECT * FROM captions LIMIT 3"',
            positional=("run", "sql"),
        )
    )
