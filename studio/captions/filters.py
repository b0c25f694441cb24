"""Filters of captions: what a person chose, and the SQL condition that it stands for, with all values bound."""

from dataclasses import dataclass, replace
from typing import Any

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
UNFLAGGED = "no flag"
EDITED = "edited"


@dataclass(frozen=True, kw_only=True)
class Range:
    """Values of a figure that are kept, both ends included."""

    figure: str
    low: float
    high: float


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

        Where captions were `reviewed`, the row is joined with its review `m`, and a text is looked for in what a person wrote.
        """
        parts: list[str] = []
        values: list[Any] = []
        if self.text:
            parts.append(f"contains({'coalesce(lower(m.edited), r.folded)' if reviewed else 'r.folded'}, ?)")
            values.append(self.text.lower())
        for column in ("prompt", "status"):
            if value := getattr(self, column):
                parts.append(f"r.{column} = ?")
                values.append(value)
        if self.source:
            parts.append("(contains(r.uri, ?) OR r.run = ?)")
            values += [self.source, self.source]
        if self.flag:
            flags = {UNFLAGGED: "m.flag IS NULL", EDITED: "m.edited IS NOT NULL"}
            parts.append(flags.get(self.flag, "m.flag = ?") if reviewed else str(self.flag == UNFLAGGED))
            values += [self.flag] if reviewed and self.flag not in flags else []
        for one in self.ranges:
            parts.append(f"r.{one.figure} BETWEEN ? AND ?")
            values += [one.low, one.high]
        return " AND ".join(parts), values
