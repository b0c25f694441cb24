"""Command that answers SQL queries about a captioning run, finished or not, or a data set; access is read-only.

python -m dataset_builder.query RUN "SELECT noun, count FROM noun_counts ORDER BY count DESC LIMIT 10"
python -m dataset_builder.query DATASET "FROM density()"
python -m dataset_builder.query RUN                      an interactive prompt
"""

import csv
import json
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from foundry.command_line import run_command
from foundry.errors import UserError

if TYPE_CHECKING:
    from dataset_builder.sql.database import Database

_HELP = "end a question with ;   \\d lists tables and macros   \\d TABLE its columns   \\r reads the files again   \\q leaves"


@dataclass(frozen=True, kw_only=True)
class QueryConfig:
    """Raises ValueError for max_rows below 1."""

    run: str
    """Folder or URL of a captioning run or a data set."""
    sql: str = ""
    """SQL query, or several with ; between them; default: an interactive prompt."""
    format: Literal["table", "csv", "json"] = "table"
    """Format of the answers: a box, CSV with a header, or a JSON array with one row per line."""
    max_rows: int = 40
    """Number of rows that a box shows, from both ends of a longer answer. CSV and JSON hold all."""

    def __post_init__(self) -> None:
        if self.max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, found {self.max_rows}")


def main(config: QueryConfig) -> int:
    """Prints the answers and returns 0."""
    from dataset_builder.sql.dataset_files import open_stored

    with open_stored(config.run) as database:
        if config.sql.strip():
            for statement in database.statements(config.sql):
                print_answer(database, statement, config)
            return 0
    converse(config)
    return 0


def print_answer(database: "Database", statement: str, config: QueryConfig) -> None:
    """Prints the answer to one statement in the chosen format. Raises UserError for a question that has none."""
    if config.format == "table":
        database.show(statement, max_rows=config.max_rows, max_width=shutil.get_terminal_size((110, 40)).columns)
    elif config.format == "csv":
        _print_csv(database, statement)
    else:
        _print_json(database, statement)


def converse(config: QueryConfig) -> None:
    """Asks for SQL on standard input until \\q or its end; errors are printed, and the conversation continues."""
    from dataset_builder.sql.dataset_files import open_stored

    is_terminal = sys.stdin.isatty()
    if is_terminal:
        import readline  # noqa: F401 - gives input() its history and editing

        print(f"{config.run}: {_HELP}")
    database = open_stored(config.run)
    for text in _questions(is_terminal):
        try:
            if text == "\\r":
                reopened = open_stored(config.run)
                database.close()
                database = reopened
            elif text.startswith("\\"):
                _print_tables(database, text)
            else:
                for statement in database.statements(text):
                    print_answer(database, statement, config)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
    database.close()


def _questions(is_terminal: bool) -> Iterator[str]:
    """Texts that end in ; (or with the input), and commands that begin with a backslash, up to \\q."""
    lines: list[str] = []
    while True:
        try:
            line = input(("   ...> " if lines else "sql> ") if is_terminal else "")
        except KeyboardInterrupt:
            lines = []
            print()
            continue
        except EOFError:
            if "".join(lines).strip():
                yield "\n".join(lines)
            return
        if not lines and line.strip().startswith("\\"):
            if line.strip() == "\\q":
                return
            yield line.strip()
            continue
        lines = [*lines, line] if lines or line.strip() else []
        if line.rstrip().endswith(";"):
            yield "\n".join(lines)
            lines = []


def _print_tables(database: "Database", command: str) -> None:
    """Answers \\d and \\d TABLE. Raises UserError for another command."""
    from dataset_builder.sql.macros import MACROS

    words = command.split()
    if words[0] != "\\d" or len(words) > 2:
        raise UserError(f"there is no command {command}: {_HELP}")
    if len(words) == 2:
        database.show(f"DESCRIBE {words[1]}", max_rows=200, max_width=110)
        return
    for name, what in {**database.comments, **MACROS}.items():
        print(f"{name:34} {what}")


def _print_csv(database: "Database", statement: str) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    for index, batch in enumerate(database.batches(statement)):
        if index == 0:
            writer.writerow(batch.schema.names)
        for row in batch.to_pylist(maps_as_pydicts="strict"):
            writer.writerow([json.dumps(_plain(cell)) if isinstance(cell, list | dict) else cell for cell in row.values()])


def _print_json(database: "Database", statement: str) -> None:
    first = True
    for batch in database.batches(statement):
        for row in batch.to_pylist(maps_as_pydicts="strict"):
            print("[" if first else ",", json.dumps(_plain(row), ensure_ascii=False), sep="" if first else "\n", end="")
            first = False
    print("[]" if first else "]")


def _plain(value: Any) -> Any:
    """A value as JSON has it: no NaN, no decimals; times and bytes as text."""
    if isinstance(value, dict):
        return {key: _plain(cell) for key, cell in value.items()}
    if isinstance(value, list):
        return [_plain(cell) for cell in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


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
