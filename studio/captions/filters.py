"""Filters of captions: what a person chose, and the SQL condition that it stands for, with all values bound."""

import math
from dataclasses import dataclass, replace
from typing import Any

from dataset_builder.reports.charts import short_number

FIGURES = {
    "num_words": "words",
    "num_nouns": "nouns",
    "density": "different nouns",
    "num_t5_tokens": "T5 tokens",
    "mean_logprob": "confidence",
    "clip_mean": "CLIP score",
    "aesthetic": "aesthetic score",
}
"""Columns of the index that have a histogram and can be sorted by, and what people call them."""
WHOLE = ("num_words", "num_nouns", "density", "num_t5_tokens")
"""Figures that count something."""
RECOUNTED = ("status", "num_words", "num_nouns", "density", "num_t5_tokens")
"""Columns of the index that an edit has for its own text."""
UNFLAGGED = "no flag"
EDITED = "edited"


@dataclass(frozen=True, kw_only=True)
class Range:
    """Values of a figure that are kept, both ends included; an infinite end is open."""

    figure: str
    low: float
    high: float

    @property
    def name(self) -> str:
        """The range in words."""
        if math.isinf(self.high):
            return "any" if math.isinf(self.low) else f"{short_number(self.low)} or more"
        if math.isinf(self.low):
            return f"{short_number(self.high)} or less"
        return short_number(self.low) if self.low == self.high else f"{short_number(self.low)} to {short_number(self.high)}"


@dataclass(frozen=True, kw_only=True)
class CaptionFilter:
    """Conditions that a caption meets. Raises ValueError for a figure that is not in FIGURES."""

    text: str = ""
    """Text that the caption contains, whatever its case."""
    prompt: str = ""
    status: str = ""
    source: str = ""
    """Part of the path of the file that holds the image, or of the name of its run."""
    flag: str = ""
    """Flag of the caption, UNFLAGGED or EDITED."""
    ranges: tuple[Range, ...] = ()

    def __post_init__(self) -> None:
        if unknown := [one.figure for one in self.ranges if one.figure not in FIGURES]:
            raise ValueError(f"expected a figure among {', '.join(FIGURES)}, found {unknown[0]}")

    def with_range(self, chosen: Range) -> "CaptionFilter":
        """The filter with a range in place of the figure's earlier one."""
        others = tuple(one for one in self.ranges if one.figure != chosen.figure)
        return replace(self, ranges=(*others, chosen))

    def without_range(self, figure: str) -> "CaptionFilter":
        """The filter without a range of this figure."""
        return replace(self, ranges=tuple(one for one in self.ranges if one.figure != figure))

    def condition(self, *, reviewed: bool) -> tuple[str, list[Any]]:
        """A condition on a row `r` of the index, and the values of its parameters; "" for no filter.

        Where captions were `reviewed`, the row is joined with its review `m`, whose text, status and counts come first.
        """
        parts: list[str] = []
        values: list[Any] = []
        if self.text:
            parts.append(f"contains({'coalesce(lower(m.edited), r.folded)' if reviewed else 'r.folded'}, ?)")
            values.append(self.text.lower())
        for column in ("prompt", "status"):
            if value := getattr(self, column):
                parts.append(f"{value_sql(column, reviewed=reviewed)} = ?")
                values.append(value)
        if self.source:
            parts.append("(contains(r.uri, ?) OR r.run = ?)")
            values += [self.source, self.source]
        if self.flag:
            flags = {UNFLAGGED: "m.flag IS NULL", EDITED: "m.edited IS NOT NULL"}
            parts.append(flags.get(self.flag, "m.flag = ?") if reviewed else str(self.flag == UNFLAGGED))
            values += [self.flag] if reviewed and self.flag not in flags else []
        for one in self.ranges:
            parts.append(f"{value_sql(one.figure, reviewed=reviewed)} BETWEEN ? AND ?")
            values += [one.low, one.high]
        return " AND ".join(parts), values


def value_sql(column: str, *, reviewed: bool) -> str:
    """A column of a row `r`; where captions were `reviewed`, that of the edit `m` comes first, which has no log-probability."""
    if not reviewed:
        return f"r.{column}"
    if column in RECOUNTED:
        return f"coalesce(m.{column}, r.{column})"
    return f"CASE WHEN m.edited IS NULL THEN r.{column} END" if column == "mean_logprob" else f"r.{column}"
