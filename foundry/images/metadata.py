"""What a source says of its images beside their bytes: which columns are alt text, class label or metadata, and their types.

One mapping for all: columns of a list or a Parquet file, and fields of a JSON beside an image.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from functools import lru_cache

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
Scalar = str | int | float | bool

ALT_TEXT_NAMES = ("alt_text", "alt", "caption", "text")
CLASS_LABEL_NAMES = ("class_label", "label", "class", "cls")
"""In order of preference; case does not matter (LAION writes TEXT). The ones that are not taken go to metadata."""


@dataclass(frozen=True, kw_only=True)
class Carried:
    """alt_text and class_label are None where there are none; metadata holds the other scalar columns that are not null."""

    alt_text: str | None = None
    class_label: str | None = None
    metadata: dict[str, Scalar] = field(default_factory=dict)


def map_columns(columns: Mapping[str, object]) -> Carried:
    """Sorts the columns of one row into alt text, class label and metadata.

    Scalars only: lists, structs and bytes are left out, null and NaN count as absent; dates and decimals become text.
    Raises ValueError for text that no encoding can hold (a lone surrogate).
    """
    values = {name: scalar for name, value in columns.items() if (scalar := _scalar(value)) is not None}
    alt_text = _take(values, ALT_TEXT_NAMES)
    class_label = _take(values, CLASS_LABEL_NAMES)
    return Carried(
        alt_text=None if alt_text is None else str(alt_text),
        class_label=None if class_label is None else _label(class_label),
        metadata=values,
    )


def merge(first: Carried, second: Carried) -> Carried:
    """Both, and where both know something, the first."""
    return Carried(
        alt_text=second.alt_text if first.alt_text is None else first.alt_text,
        class_label=second.class_label if first.class_label is None else first.class_label,
        metadata={**second.metadata, **first.metadata},
    )


def metadata_json(metadata: Mapping[str, Scalar]) -> str | None:
    """A JSON object, or None for no metadata."""
    return _ENCODER.encode(metadata) if metadata else None


def duckdb_types(rows: Iterable[Mapping[str, Scalar]]) -> dict[str, str]:
    """The narrowest of BIGINT, DOUBLE, BOOLEAN and VARCHAR that holds all values seen, for each name in order of appearance."""
    types: dict[str, str] = {}
    for row in rows:
        for name, value in row.items():
            types[name] = _common_type(types.get(name), _duckdb_type(value))
    return types


def _common_type(first: str | None, second: str) -> str:
    if first is None or first == second:
        return second
    return "DOUBLE" if {first, second} == {"BIGINT", "DOUBLE"} else "VARCHAR"


def _duckdb_type(value: Scalar) -> str:
    if isinstance(value, bool):
        return "BOOLEAN"
    if isinstance(value, int):
        return "BIGINT" if -(2**63) <= value < 2**63 else "VARCHAR"
    return "DOUBLE" if isinstance(value, float) else "VARCHAR"


def _scalar(value: object) -> Scalar | None:
    if isinstance(value, str):
        if not value.isascii():
            value.encode()  # raises UnicodeEncodeError, a ValueError, for a lone surrogate
        return value or None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bool | int):
        return value
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal) else None


def _take(values: dict[str, Scalar], names: tuple[str, ...]) -> Scalar | None:
    """Removes and returns the value of the most preferred name that is there."""
    ranked = [(rank, name) for name in values if (rank := _rank(name, names)) is not None]
    return values.pop(min(ranked)[1]) if ranked else None


@lru_cache(maxsize=8192)
def _rank(name: str, names: tuple[str, ...]) -> int | None:
    lower = name.lower()
    return names.index(lower) if lower in names else None


def _label(value: Scalar) -> str:
    """3.0 is how a table with gaps writes the class 3."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
