"""Console of SQL queries: an interactive prompt, and answers as boxes, CSV or JSON on standard output."""

import csv
import io
import json
import math
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import redirect_stdout
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from dataset_builder.sql.columns import column_meaning
from dataset_builder.sql.macros import MACROS
from foundry.commands import as_typed
from foundry.errors import UserError
from foundry.reporting.lines import visible

if TYPE_CHECKING:
    from dataset_builder.sql.database import Database

AnswerFormat = Literal["table", "csv", "json"]
_TYPE_WIDTH = 16
_HELP = (
    "end a question with ;   \\d lists tables and macros   \\d TABLE explains its columns   \\r reads the files again   "
    "\\h shows this line   \\q leaves"
)
# What people type who know other consoles, and what it means here.
_COMMANDS = {
    **dict.fromkeys(("\\h", "\\?", "help", ".help", "?"), "\\h"),
    **dict.fromkeys(("\\dt", "\\dv", ".tables", "tables"), "\\d"),
    **dict.fromkeys(("quit", "exit", ".quit", ".exit", ".q"), "\\q"),
    **dict.fromkeys(("\\d+", ".schema", ".columns"), "\\d"),
}


def print_answer(database: "Database", statement: str, *, answer_format: AnswerFormat, max_rows: int) -> None:
    """Prints the answer to one statement in the chosen format, and on stderr why a view that it reads is empty.

    Raises UserError for a question that has no answer.
    """
    for hint in database.hints(statement):
        print(as_typed(hint), file=sys.stderr)
    if answer_format == "table":
        said = io.StringIO()
        with redirect_stdout(said):
            database.show(statement, max_rows=max_rows, max_width=shutil.get_terminal_size((110, 40)).columns)
        print(visible(said.getvalue()), end="")
    elif answer_format == "csv":
        _print_csv(database, statement)
    else:
        _print_json(database, statement)


def answer(database: "Database", text: str, *, answer_format: AnswerFormat, max_rows: int) -> None:
    """Prints the answers to SQL, one statement or several, or to a command of the prompt such as \\d captions.

    Raises UserError for a question that has no answer, and for an unknown command.
    """
    if command := _command(text):
        _answer_command(database, command)
        return
    for statement in database.statements(text):
        print_answer(database, statement, answer_format=answer_format, max_rows=max_rows)


def converse(run: str, *, training: str | None, answer_format: AnswerFormat, max_rows: int) -> None:
    """Asks for SQL on standard input until \\q or its end; errors are printed, and the conversation continues."""
    from dataset_builder.sql.dataset_files import open_stored

    is_terminal = sys.stdin.isatty()
    if is_terminal:
        import readline  # noqa: F401 - gives input() its history and editing

        print(f"{run}: {_HELP}")
    database = open_stored(run, training=training)
    for text in _questions(is_terminal):
        try:
            if text == "\\r":
                reopened = open_stored(run, training=training)
                database.close()
                database = reopened
            else:
                answer(database, text, answer_format=answer_format, max_rows=max_rows)
        except UserError as error:
            print(as_typed(f"error: {error}"), file=sys.stderr)
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
        if not lines and (command := _command(line)):
            if command == "\\q":
                return
            yield command
            continue
        lines = [*lines, line] if lines or line.strip() else []
        if line.rstrip().endswith(";"):
            yield "\n".join(lines)
            lines = []


def _command(line: str) -> str:
    """The command in a line, under the name that it has here; "" for SQL."""
    word, _, argument = line.strip().removesuffix(";").partition(" ")
    known = _COMMANDS.get(word.lower(), word)
    return f"{known} {argument}".strip() if known.startswith(("\\", ".")) else ""


def _answer_command(database: "Database", command: str) -> None:
    """Answers \\h, \\d and \\d TABLE. Raises UserError for another command."""
    name, _, view = command.partition(" ")
    if name == "\\h":
        print(_HELP)
    elif name != "\\d":
        raise UserError(f"there is no command {command}: {_HELP}")
    elif view:
        _print_columns(database, view.strip())
    else:
        for table, what in {**database.comments, **MACROS}.items():
            print(f"{table:34} {what}")


def _print_columns(database: "Database", view: str) -> None:
    """Prints each column of a view with its type and meaning. Raises UserError for a view that there is not."""
    described = database.fetch(f"SELECT column_name, column_type FROM (DESCRIBE {view})").to_pylist()
    for row in described:
        kind = textwrap.shorten(row["column_type"], _TYPE_WIDTH, placeholder="…")
        print(f"{row['column_name']:20} {kind:{_TYPE_WIDTH}} {column_meaning(view, row['column_name'])}")


def _print_csv(database: "Database", statement: str) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    quoting = csv.writer(sys.stdout, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for index, batch in enumerate(database.batches(statement)):
        if index == 0:
            writer.writerow(batch.schema.names)
        for row in batch.to_pylist(maps_as_pydicts="strict"):
            cells = [json.dumps(_plain(cell)) if isinstance(cell, list | dict) else cell for cell in row.values()]
            # Readers take a return for the end of a row unless it is quoted.
            has_return = any(isinstance(cell, str) and "\r" in cell for cell in cells)
            (quoting if has_return else writer).writerow(cells)


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
