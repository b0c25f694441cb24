"""Queries on an index of captions: pages by keyset, counts and histograms, under one filter and the reviews of people.

A filter reads all captions once and keeps the numbers of the rows that meet it; pages, counts and histograms under it then read
those rows alone. No query has an OFFSET: a page begins after the last row of the one before, wherever that is.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dataset_builder.sql.database import Connection
from studio.captions.filters import FIGURES, RECOUNTED, WHOLE, CaptionFilter, value_sql

PAGE_ROWS = 24
BINS = 24
_KEPT_FILTERS = 8
_MARKS = dict.fromkeys(("run", "key", "prompt", "flag", "edited"), "VARCHAR") | {
    name: "VARCHAR" if name == "status" else "INTEGER" for name in RECOUNTED
}
"""Columns of the table of reviews, and their types."""
Direction = Literal["ascending", "descending"]


@dataclass(frozen=True, kw_only=True)
class Order:
    """Order of a gallery: by a figure of FIGURES, or as in the files where that is empty."""

    figure: str = ""
    direction: Direction = "ascending"

    def __post_init__(self) -> None:
        if self.figure and self.figure not in FIGURES:
            raise ValueError(f"expected a figure among {', '.join(FIGURES)}, found {self.figure}")


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """Position in an order: the row after which a page begins."""

    n: int
    value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Page:
    """Rows of a page; `after` begins the next one, None where there is none."""

    rows: list[dict[str, Any]]
    after: Cursor | None


@dataclass(frozen=True, kw_only=True)
class FigureBins:
    """Captions by equal bins of a figure, from its least to its greatest value in the whole index.

    The least and the greatest value of each bin; those of a figure that counts are whole numbers.
    """

    figure: str
    bins: list[tuple[float, float]]
    counts: list[int]


class CaptionIndex:
    """An index that is attached as `idx`. For several threads at once: each query has a cursor of its own."""

    def __init__(self, connection: Connection, *, name: str, num_hits: int = _KEPT_FILTERS) -> None:
        self.name = name
        """Which state of the captions the numbers of rows are of."""
        self._connection = connection
        self._lock = threading.Lock()
        self._hits: OrderedDict[tuple[CaptionFilter, int], str] = OrderedDict()
        self._num_hits = num_hits
        self._num_made = 0
        self._version = 0
        self._reviewed = False
        connection.execute(f"CREATE TABLE marks ({', '.join(f'{name} {kind}' for name, kind in _MARKS.items())})")
        self._spans = self._read_spans()

    def set_reviews(
        self, edits: Mapping[tuple[str, str, str], Mapping[str, Any]], flags: Mapping[tuple[str, str, str], str]
    ) -> None:
        """Replaces what people wrote: rows of edits, and flags, by run (a data set's name of it, else ""), key and prompt."""
        rows = [[*of, flags.get(of), *_edited(edits.get(of, {}))] for of in edits.keys() | flags.keys()]
        with self._lock, self._connection.cursor() as cursor:
            cursor.execute("BEGIN TRANSACTION; DELETE FROM marks")
            if rows:
                cursor.executemany(f"INSERT INTO marks VALUES ({', '.join('?' * len(_MARKS))})", rows)
            cursor.execute("COMMIT")
            self._version += 1
            was_reviewed, self._reviewed = self._reviewed, bool(rows)
        if rows or was_reviewed:
            self._spans = self._read_spans()

    def page_numbers(self) -> list[int]:
        """The numbers of the rows of the first page."""
        return [row["n"] for row in self._rows(f"SELECT n FROM idx.rows ORDER BY n LIMIT {PAGE_ROWS}")]

    def page(
        self, chosen: CaptionFilter, order: Order | None = None, *, after: Cursor | None = None, size: int = PAGE_ROWS
    ) -> Page:
        """A page of captions that meet a filter, with the columns of the index, `flag` and `edited`."""
        order = order or Order()
        relation, condition = self._joined(self._hits_of(chosen)), "true"
        sign, way = (">", "ASC") if order.direction == "ascending" else ("<", "DESC")
        value = f"({self._value(order.figure)})::DOUBLE" if order.figure else "NULL::DOUBLE"
        parameters: list[Any] = []
        if order.figure:  # captions without the figure, such as unscored ones, have no place in its order
            condition = f"{value} IS NOT NULL"
        if after is not None:
            condition += f" AND ({value} {sign} ? OR ({value} = ? AND r.n > ?))" if order.figure else " AND r.n > ?"
            parameters = [after.value, after.value, after.n] if order.figure else [after.n]
        by = f"{value} {way}, r.n" if order.figure else "r.n"
        numbers = self._rows(
            f"SELECT r.n, {value} AS value FROM {relation} WHERE {condition} ORDER BY {by} LIMIT {size + 1}", parameters
        )
        rows = self.rows([row["n"] for row in numbers[:size]])
        last = Cursor(n=numbers[size - 1]["n"], value=numbers[size - 1]["value"]) if len(numbers) > size else None
        return Page(rows=rows, after=last)

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The rows with these numbers, in this order; numbers that are not in the index are left out."""
        if not numbers:
            return []
        # A join reads the stretches of the file that hold a number; a list of numbers in a condition would read more.
        wanted = "(SELECT unnest(?::BIGINT[]) AS wanted) w JOIN idx.rows r ON r.n = w.wanted"
        found = self._rows(f"SELECT {self._columns()} FROM {self._joined(wanted)}", [[int(number) for number in numbers]])
        by_number = {row["n"]: row for row in found}
        return [by_number[number] for number in numbers if number in by_number]

    def number_of(self, row: Mapping[str, Any]) -> int:
        """The number here of a caption of another index of the same files; 0 if it is not here."""
        found = self._rows(
            "SELECT n FROM idx.rows WHERE piece = ? AND key = ? AND prompt = ?", [row["piece"], row["key"], row["prompt"]]
        )
        return int(found[0]["n"]) if found else 0

    def rows_of(self, key: str) -> list[dict[str, Any]]:
        """The captions of an image, by prompt."""
        return self._rows(f"SELECT {self._columns()} FROM {self._joined()} WHERE r.key = ? ORDER BY r.prompt", [key])

    def count(self, chosen: CaptionFilter, *, figure: str = "") -> int:
        """The number of captions that meet a filter; with a figure, of those that have it."""
        if figure:
            sql = f"SELECT count({self._value(figure)}) AS captions FROM {self._joined(self._hits_of(chosen))}"
        else:
            sql = f"SELECT count(*) AS captions FROM {self._hits_of(chosen)}"
        return int(self._rows(sql)[0]["captions"])

    def histograms(self, chosen: CaptionFilter) -> list[FigureBins]:
        """The captions that meet a filter by each figure that has more than one value."""
        bins = {figure: _bins(figure, *span) for figure, span in self._spans.items() if span[1] > span[0]}
        if not bins:
            return []
        numbered = ", ".join(
            f"least(floor((({self._value(figure)}) - {found[0][0]!r}) / {found[1][0] - found[0][0]!r})::INT, {len(found) - 1}) "
            f"AS {figure}"
            for figure, found in bins.items()
        )
        binned = f"WITH binned AS MATERIALIZED (SELECT {numbered} FROM {self._joined(self._hits_of(chosen))}) "
        each = (f"SELECT '{figure}' AS figure, {figure} AS bin, count(*) AS n FROM binned GROUP BY ALL" for figure in bins)
        counts = {(row["figure"], row["bin"]): row["n"] for row in self._rows(binned + " UNION ALL ".join(each))}
        return [
            FigureBins(figure=figure, bins=found, counts=[counts.get((figure, number), 0) for number in range(len(found))])
            for figure, found in bins.items()
        ]

    def values(self, column: Literal["prompt", "status", "run"]) -> list[str]:
        """The different values of a column, sorted."""
        return [row["value"] for row in self._rows(f"SELECT DISTINCT {column} AS value FROM idx.rows ORDER BY 1")]

    def _hits_of(self, chosen: CaptionFilter) -> str:
        """A relation with the rows `r` that meet a filter. Their numbers are kept until other filters push them out."""
        condition, values = chosen.condition(reviewed=self._reviewed)
        if not condition:
            return "idx.rows r"
        with self._lock:
            known = (chosen, self._version)
            if known not in self._hits:
                name = f"hits_{self._num_made}"
                self._num_made += 1
                with self._connection.cursor() as cursor:
                    cursor.execute(f"CREATE TABLE {name} AS SELECT r.n FROM {self._joined()} WHERE {condition}", values)
                self._hits[known] = name
                self._forget()
            self._hits.move_to_end(known)
            return f"(SELECT * FROM idx.rows SEMI JOIN {self._hits[known]} USING (n)) r"

    def _forget(self) -> None:
        """Drops the rows of the filters that were asked for least recently."""
        while len(self._hits) > self._num_hits:
            _, name = self._hits.popitem(last=False)
            with self._connection.cursor() as cursor:
                cursor.execute(f"DROP TABLE {name}")

    def _joined(self, rows: str = "idx.rows r") -> str:
        """The rows `r` with their reviews `m`."""
        if self._reviewed:
            return f"{rows} LEFT JOIN marks m ON m.run = r.run AND m.key = r.key AND m.prompt = r.prompt"
        return f"{rows}, (SELECT NULL::VARCHAR AS flag, NULL::VARCHAR AS edited) m"

    def _value(self, column: str) -> str:
        return value_sql(column, reviewed=self._reviewed)

    def _columns(self) -> str:
        """The columns of a row for those who show it."""
        replaced = ", ".join(f"{self._value(name)} AS {name}" for name in (*RECOUNTED, "mean_logprob"))
        return f"r.* EXCLUDE (folded) REPLACE ({replaced}), m.flag, m.edited"

    def _read_spans(self) -> dict[str, tuple[float, float]]:
        values = {name: self._value(name) for name in FIGURES}
        ends = ", ".join(f"[min({value}), max({value})]::DOUBLE[] AS {name}" for name, value in values.items())
        found = self._rows(f"SELECT {ends} FROM {self._joined()}")[0]
        return {name: (ends[0], ends[1]) for name, ends in found.items() if ends[0] is not None}

    def _rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        with self._connection.cursor() as cursor:
            found = cursor.execute(sql, list(parameters))
            names = [column[0] for column in found.description or ()]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def _edited(edit: Mapping[str, Any]) -> list[Any]:
    """The columns of marks that come from an edit, all None without one."""
    given = {**edit, "density": edit.get("num_distinct_nouns"), "edited": edit.get("after")}
    return [given.get(name) for name in ("edited", *RECOUNTED)]


def _bins(figure: str, low: float, high: float) -> list[tuple[float, float]]:
    """At least two equal bins between two different values, both of which are in one."""
    if figure not in WHOLE:
        width = (high - low) / BINS
        return [(low + width * number, low + width * (number + 1)) for number in range(BINS)]
    width = math.ceil((high - low + 1) / BINS)
    starts = [low + width * number for number in range(math.ceil((high - low + 1) / width))]
    return [(start, start + width - 1) for start in starts]
