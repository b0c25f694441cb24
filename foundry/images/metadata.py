"""Image metadata: maps a source's columns and JSON fields, and the sidecar files of an image, to alt text, class label and
typed columns. Sidecars are captions (.txt, .caption), class labels (.cls), JSON metadata and SA-1B masks.

One mapping for all: columns of a list or a Parquet file, and fields of a JSON next to an image.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from functools import lru_cache

from foundry.units.rejection import ImageError

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
_NUMBER = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?")
Scalar = str | int | float | bool
ALT_TEXT_NAMES = ("alt_text", "alt", "caption", "text")
CLASS_LABEL_NAMES = ("class_label", "label", "class", "cls")
"""Column names, in order of preference; case does not matter (LAION writes TEXT). The ones that are not taken go to
metadata."""
LEFT_OUT = "left_out"
"""Member of the metadata that says what of an image's columns and sidecars could not be taken."""


@dataclass(frozen=True, kw_only=True)
class Carried:
    """alt_text and class_label are None if there are none; metadata holds the other scalar columns that are not null."""

    alt_text: str | None = None
    class_label: str | None = None
    metadata: dict[str, Scalar] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    """Facts that were left out, a phrase each."""

    @property
    def all_metadata(self) -> dict[str, Scalar]:
        """metadata, and what was left out as its member LEFT_OUT."""
        return self.metadata | ({LEFT_OUT: "; ".join(self.left_out)} if self.left_out else {})


def map_columns(columns: Mapping[str, object]) -> Carried:
    """Sorts the columns of one row into alt text, class label and metadata.

    Scalars only: lists, structs and bytes are no metadata, null and NaN count as absent; dates and decimals become text. A name
    or a text that no encoding can hold (a lone surrogate) is named in `left_out`.
    """
    values: dict[str, Scalar] = {}
    left_out = []
    for name, value in columns.items():
        try:
            scalar = _scalar(value)
            if scalar is not None and not name.isascii():
                name.encode()
        except UnicodeEncodeError:
            left_out.append(f"{_readable(name)} holds text that is not valid Unicode")
            continue
        if scalar is not None:
            values[name] = scalar
    alt_text = _take(values, ALT_TEXT_NAMES)
    class_label = _take(values, CLASS_LABEL_NAMES)
    return Carried(
        alt_text=None if alt_text is None else str(alt_text),
        class_label=None if class_label is None else _label(class_label),
        metadata=values,
        left_out=tuple(left_out),
    )


def merge(first: Carried, second: Carried) -> Carried:
    """Both, and where both know something, the first."""
    return Carried(
        alt_text=second.alt_text if first.alt_text is None else first.alt_text,
        class_label=second.class_label if first.class_label is None else first.class_label,
        metadata={**second.metadata, **first.metadata},
        left_out=first.left_out + second.left_out,
    )


def metadata_json(metadata: Mapping[str, Scalar]) -> str | None:
    """A JSON object, or None for no metadata."""
    return _ENCODER.encode(metadata) if metadata else None


def duckdb_types(rows: Iterable[Mapping[str, Scalar]]) -> dict[str, str]:
    """The narrowest of BIGINT, DOUBLE, BOOLEAN and VARCHAR that holds all values seen, for each name in order of appearance."""
    types: dict[str, str] = {}
    for row in rows:
        merge_types(types, {name: _duckdb_type(value) for name, value in row.items()})
    return types


def merge_types(types: dict[str, str], others: Mapping[str, str]) -> None:
    """Widens `types` in place, so that each holds the values of both; text holds those of every type."""
    for name, other in others.items():
        types[name] = _common_type(types.get(name), other)


def widen_types(types: dict[str, str], row: Mapping[str, Scalar], *, is_text: bool) -> None:
    """The same for the values of one row; with `is_text` (csv) a value is what its text means, and `007` stays text."""
    for name, value in row.items():
        known = types.get(name)
        if known != "VARCHAR":
            types[name] = _common_type(known, _duckdb_type(_parsed(str(value)) if is_text else value))


@dataclass(frozen=True, kw_only=True)
class SidecarData:
    """Metadata of an image from its sidecars. The last two are None unless SA-1B's masks were given.

    num_masks counts them; mask_area_px is the sum of their areas in pixels of the original, overlaps counted twice.
    """

    carried: Carried = field(default_factory=Carried)
    num_masks: int | None = None
    mask_area_px: int | None = None


def parse_sidecars(files: Iterable[tuple[str, bytes, str]]) -> SidecarData:
    """Reads (suffix, bytes, where) in order; where two files know the same thing, the earlier one counts.

    Of a JSON, the top-level scalar fields are kept and those of SA-1B's `image`; nested ones are not, annotations least of all.
    A JSON that is no object, which many tools write annotations as, says nothing of the image, and is named in `left_out`.
    Raises ImageError("bad_sidecar") for text that is not UTF-8 and for broken JSON.
    """
    data = SidecarData()
    for suffix, content, where in files:
        found = _parse(suffix, content, where)
        data = SidecarData(
            carried=merge(data.carried, found.carried),
            num_masks=found.num_masks if data.num_masks is None else data.num_masks,
            mask_area_px=found.mask_area_px if data.mask_area_px is None else data.mask_area_px,
        )
    return data


def _parsed(text: str) -> Scalar:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    is_code = text.lstrip("-+").startswith("0") and text.lstrip("-+")[1:2].isdigit()
    return float(text) if _NUMBER.fullmatch(text) and not is_code else text


def _readable(text: str) -> str:
    """Text in which a lone surrogate is written out."""
    return text.encode("utf-8", "backslashreplace").decode()


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


def _parse(suffix: str, content: bytes, where: str) -> SidecarData:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImageError("bad_sidecar", f"{where} is not UTF-8: {error}") from error
    if suffix == ".json":
        return _parse_json(text, where)
    if suffix == ".cls":
        return SidecarData(carried=Carried(class_label=text.strip() or None))
    return SidecarData(carried=Carried(alt_text=text.strip() or None))


def _parse_json(text: str, where: str) -> SidecarData:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ImageError("bad_sidecar", f"{where} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        kind = "an array" if isinstance(fields, list) else "a value"
        return SidecarData(carried=Carried(left_out=(f"the JSON next to the image holds {kind}, not an object",)))
    image = fields.get("image")
    carried = map_columns({**(image if isinstance(image, dict) else {}), **fields})
    num_masks, mask_area_px = _masks(fields.get("annotations"))
    return SidecarData(carried=carried, num_masks=num_masks, mask_area_px=mask_area_px)


def _masks(annotations: object) -> tuple[int | None, int | None]:
    """Number and total area; None for what the annotations do not tell."""
    if not isinstance(annotations, list) or not all(isinstance(annotation, dict) for annotation in annotations):
        return None, None
    areas = [annotation.get("area") for annotation in annotations]
    if not all(isinstance(area, int | float) and not isinstance(area, bool) for area in areas):
        return len(areas), None
    return len(areas), round(sum(areas))
