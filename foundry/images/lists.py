"""Lists of images: jsonl, csv, tsv, or Parquet with a column of paths or URLs. All other columns become metadata."""

import csv
import io
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np

from foundry.errors import UserError
from foundry.images.index import LISTED, IndexRow, sidecars_in
from foundry.images.metadata import Carried, Scalar, duckdb_types, map_columns, metadata_json
from foundry.images.parquet import PATH_NAMES, layout_of, name_classes, open_parquet, read_schema
from foundry.storage.file_kinds import PARQUET_SUFFIX, stem_of, suffix_of
from foundry.storage.locations import is_inside, locate, one_line, open_binary, parent, read_errors, relative_to

_SAMPLED_ROWS = 1000
_PARQUET_BATCH_ROWS = 8192
_DIGEST_BYTES = 16

_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
_NUMBER = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?")


def find_path_column(uri: str) -> str | None:
    """The column that names images, judged by the schema or the first row; None if there is none.

    Raises UserError if the list has no rows or cannot be read.
    """
    if suffix_of(uri) == PARQUET_SUFFIX:
        return layout_of(read_schema(uri)).path
    first = next(read_rows(uri), None)
    if first is None:
        raise UserError(f"{uri} has no rows, expected a list of images; remove it or write it again")
    names = {name.lower(): name for name in reversed(first) if isinstance(first[name], str)}
    empty = {name.lower(): name for name in reversed(first) if first[name] is None}
    return next((found[name] for found in (names, empty) for name in PATH_NAMES if name in found), None)


def read_rows(uri: str) -> Iterator[dict[str, Any]]:
    """The rows of a list, streaming. Values of csv and tsv are text. Raises UserError that names the unreadable row."""
    with read_errors(uri, "fetch it again, or write it as UTF-8"):
        if suffix_of(uri) == PARQUET_SUFFIX:
            yield from _parquet_rows(uri)
        elif suffix_of(uri) in (".csv", ".tsv"):
            yield from _csv_rows(uri)
        else:
            yield from _json_rows(uri)


def index_list(uri: str, root: str, *, path_column: str, search_sidecars: bool) -> Iterator[IndexRow]:
    """One row for each row of the list, in its order. Images are not looked at: a missing one is found when it is read.

    A path is relative to the list's folder; a row without one gets the list itself and its own number as a reference, from
    which nothing can be read (reader.py), so that it is rejected by name. With `search_sidecars`, sidecars of a listed
    image below root are found too; where both know something, the list's column counts. Nested columns are left out. Two
    rows may name the same image.
    Raises UserError if the list has no rows.
    """
    folder = parent(uri)
    listing = lru_cache(maxsize=8)(sidecars_in)  # the rows of a list mostly stay in one folder
    number = 0
    for number, columns in enumerate(read_rows(uri), start=1):
        location = _locate(columns.pop(path_column, None), folder)
        try:
            carried = map_columns(columns)
        except ValueError as error:
            raise UserError(f"row {number} of {uri} holds text that is not valid Unicode; write it again") from error
        if location is None:
            yield _without_path(uri, root, number, carried)
            continue
        stem = stem_of(location)
        beside = listing(parent(location)).get(stem, ()) if search_sidecars and is_inside(location, root) else ()
        yield IndexRow(
            stem or location,
            relative_to(location, root),
            location,
            sidecars=beside,
            alt_text=carried.alt_text,
            class_label=carried.class_label,
            metadata=metadata_json(carried.metadata),
        )
    if number == 0:
        raise UserError(f"{uri} has no rows, expected a list of images; remove it or write it again")


def list_types(uri: str, *, path_column: str) -> dict[str, str]:
    """Names and DuckDB types of the columns that go to metadata: from the schema, or from the first 1,000 rows."""
    if suffix_of(uri) == PARQUET_SUFFIX:
        return layout_of(read_schema(uri)).metadata_types
    rows = itertools.islice(read_rows(uri), _SAMPLED_ROWS)
    carried_rows = [map_columns({name: row[name] for name in row if name != path_column}).metadata for row in rows]
    if suffix_of(uri) in (".csv", ".tsv"):
        carried_rows = [{name: _parse(value) for name, value in row.items()} for row in carried_rows]
    return duckdb_types(carried_rows)


class ListedImages:
    """The set of locations that lists name, in 16 bytes each, so that a search of files can leave them to their lists."""

    def __init__(self, lists: Sequence[tuple[str, str]], *, folder: str) -> None:
        """Reads the lists, given as (uri, path column), and keeps what lies below the folder."""
        digests = bytearray()
        for uri, path_column in lists:
            for row in read_rows(uri):
                location = _locate(row.get(path_column), parent(uri))
                if location is not None and is_inside(location, folder):
                    digests += _digest(location)
        self._digests = np.sort(np.frombuffer(bytes(digests), dtype=f"S{_DIGEST_BYTES}"))

    def __contains__(self, location: object) -> bool:
        if not len(self._digests) or not isinstance(location, str):
            return False
        wanted = np.array(_digest(location), dtype=self._digests.dtype)
        position = int(np.searchsorted(self._digests, wanted))
        return position < len(self._digests) and bool(self._digests[position] == wanted)


def _digest(location: str) -> bytes:
    return blake2b(location.encode(), digest_size=_DIGEST_BYTES).digest()


def _locate(value: object, folder: str) -> str | None:
    """The location that a path or URL in a list means; None where there is none."""
    return locate(value.strip(), folder) if isinstance(value, str) and value.strip() else None


def _without_path(uri: str, root: str, number: int, carried: Carried) -> IndexRow:
    """What the index says of a row that names no image."""
    return IndexRow(
        f"{stem_of(uri)}-{number}",
        f"{relative_to(uri, root)}#{number}",
        uri,
        LISTED,
        row=number,
        alt_text=carried.alt_text,
        class_label=carried.class_label,
        metadata=metadata_json(carried.metadata),
    )


def _parse(value: Scalar) -> Scalar:
    """The value that a text in a csv means; `007` stays text."""
    text = str(value)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    is_code = text.lstrip("-+").startswith("0") and text.lstrip("-+")[1:2].isdigit()
    return float(text) if _NUMBER.fullmatch(text) and not is_code else text


def _parquet_rows(uri: str) -> Iterator[dict[str, Any]]:
    with open_parquet(uri) as file:
        layout = layout_of(file.schema_arrow)
        for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS, columns=list(layout.types), use_threads=False):
            for row in batch.to_pylist():
                yield name_classes(row, layout.class_names)


def _json_rows(uri: str) -> Iterator[dict[str, Any]]:
    with _open_text(uri) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UserError(f"line {number} of {uri} is not a JSON object; write one object a line")
            yield row


def _csv_rows(uri: str) -> Iterator[dict[str, Any]]:
    delimiter = "\t" if suffix_of(uri) == ".tsv" else ","
    with _open_text(uri) as lines:
        reader = csv.DictReader(lines, delimiter=delimiter)
        try:
            for row in reader:
                if None in row:
                    raise UserError(
                        f"line {reader.line_num} of {uri} has more fields than the header; quote fields that hold commas"
                    )
                yield row
        except csv.Error as error:
            raise UserError(f"line {reader.line_num} of {uri} cannot be read: {one_line(error)}; write it again") from error


def _open_text(uri: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(open_binary(uri, sequential=True), encoding="utf-8-sig", newline="")
