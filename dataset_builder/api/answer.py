"""Answers of SQL as objects of Arrow, pandas, polars and Hugging Face datasets; notebooks show them as tables."""

import html
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from foundry.errors import UserError, one_line
from foundry.extras import missing_library
from foundry.wording import counted

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import polars as pl
    import pyarrow as pa

_SHOWN_ROWS = 20
_SHOWN_CHARACTERS = 100
_EXTRA = "notebooks"


class Answer:
    """A table of rows that is in memory.

    Example:

        answer = run.sql("SELECT key, caption FROM captions LIMIT 3")
        answer.df()["caption"].str.len()
    """

    def __init__(self, table: "pa.Table", *, notes: Sequence[str] = ()) -> None:
        """`notes` are lines for the reader, shown with the table."""
        self._table = table
        self.notes = tuple(notes)

    def arrow(self) -> "pa.Table":
        """The rows as an Arrow table, without a copy."""
        return self._table

    def df(self) -> "pd.DataFrame":
        """The rows as a pandas DataFrame. Raises UserError if pandas is not installed."""
        _library("pandas")  # Arrow's own message would not say what to install
        return self._table.to_pandas()

    def pl(self) -> "pl.DataFrame":
        """The rows as a polars DataFrame. Raises UserError if polars is not installed, and for types that it does not have."""
        polars = _library("polars")
        try:
            return polars.DataFrame(self._table)
        except (TypeError, ValueError, polars.exceptions.PolarsError) as error:
            raise _no_such_type("polars", error) from None

    def dataset(self) -> "datasets.Dataset":
        """The rows as a `datasets.Dataset` of Hugging Face, in memory.

        Raises UserError if `datasets` is not installed, and for types that it does not have, such as maps.
        """
        datasets = _library("datasets")
        try:
            return datasets.Dataset(self._table)
        except (NotImplementedError, TypeError, ValueError) as error:
            raise _no_such_type("datasets", error) from None

    def rows(self) -> list[dict[str, Any]]:
        """The rows as dicts by the name of the column; a map is a dict."""
        return list(self._table.to_pylist(maps_as_pydicts="strict"))

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in their order."""
        return list(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __repr__(self) -> str:
        shown = [self.columns, *([_cell(value) for value in row.values()] for row in self._first_rows())]
        widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
        lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]
        return "\n".join([*lines, *self._remarks()])

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        cells = ("".join(f"<td>{html.escape(_cell(value))}</td>" for value in row.values()) for row in self._first_rows())
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        remarks = "".join(f"<p>{html.escape(line)}</p>" for line in self._remarks())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{remarks}"

    def _first_rows(self) -> list[Mapping[str, Any]]:
        return list(self._table.slice(0, _SHOWN_ROWS).to_pylist(maps_as_pydicts="strict"))

    def _remarks(self) -> list[str]:
        shown = f", the first {_SHOWN_ROWS} shown" if len(self) > _SHOWN_ROWS else ""
        return [*self.notes, f"{counted(len(self), 'row')}{shown}"]


def _cell(value: Any) -> str:
    """A value as a cell of a table, on one line."""
    if isinstance(value, float):
        return f"{value:,.6g}"
    text = "" if value is None else " ".join(str(value).split())
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"


def _library(name: str) -> Any:
    """The module. Raises UserError if it is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        line = f"this needs {name}, which is not installed: pip install {name}"  # of a checkout that is not installed itself
        raise missing_library(error, preferred=_EXTRA) or UserError(line) from None


def _no_such_type(library: str, error: Exception) -> UserError:
    reason = one_line(error, limit=200).rstrip(".")
    return UserError(f"{library} cannot hold this answer ({reason}): leave the column out, cast it in the SQL, or use .arrow()")
