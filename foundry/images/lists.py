"""Lists of images: jsonl, csv, tsv, or Parquet with a column of paths or URLs. All other columns become metadata."""

import csv
import io
import itertools
import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Self

import numpy as np

from foundry.errors import SourceError, one_line
from foundry.images.index import LISTED, IndexRow, SidecarRow, sidecars_in
from foundry.images.metadata import Carried, map_columns, metadata_json, widen_types
from foundry.images.parquet import PATH_NAMES, layout_of, name_classes, open_parquet, read_schema, values_of
from foundry.storage.file_kinds import PARQUET_SUFFIX, PassedOver, is_image, stem_of, suffix_of
from foundry.storage.locations import (
    is_data_url,
    is_inside,
    is_url,
    locate,
    open_binary,
    parent,
    read_errors,
    relative_to,
)

_PARQUET_BATCH_ROWS = 8192
_DIGEST_BYTES = 16

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
# How the base64 of JPEG, PNG, GIF, WebP and TIFF begins, and a length that few paths reach.
_BASE64_IMAGES = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkq", "TU0AK")
_LONG_PATH = 100
_MAX_FIELD_CHARS = 128 << 20
_URL_SAFE = str.maketrans("-_", "+/")


def find_path_column(uri: str) -> str | None:
    """The column that names images, judged by the schema or the first row; None if there is none.

    Raises UserError if the list has no rows or cannot be read.
    """
    if suffix_of(uri) == PARQUET_SUFFIX:
        return layout_of(read_schema(uri)).path
    first = next(read_rows(uri), None)
    if first is None:
        raise _no_rows(uri)
    names = {name.lower(): name for name in reversed(first) if isinstance(first[name], str)}
    empty = {name.lower(): name for name in reversed(first) if first[name] is None}
    return next((found[name] for found in (names, empty) for name in PATH_NAMES if name in found), None)


def read_rows(uri: str, *, passed_over: PassedOver | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a list, streaming. Values of csv and tsv are text. `passed_over` gets a note on rows of several lines.

    Raises UserError that names the unreadable row.
    """
    with read_errors(uri, "fetch it again, or write it as UTF-8"):
        if suffix_of(uri) == PARQUET_SUFFIX:
            yield from _parquet_rows(uri)
        elif suffix_of(uri) in _DELIMITERS:
            yield from _csv_rows(uri, PassedOver() if passed_over is None else passed_over)
        else:
            yield from _json_rows(uri)


def index_list(
    uri: str,
    root: str,
    *,
    path_column: str,
    search_sidecars: bool,
    passed_over: PassedOver | None = None,
    types: dict[str, str] | None = None,
) -> Iterator[IndexRow]:
    """One row for each row of the list, in its order. Images are not looked at: a missing one is found when it is read.

    A path is relative to the list's folder; an image in base64 becomes a data URL; a row without either gets the list itself
    and its own number as a reference, from which nothing can be read (reader.py), so that it is rejected by name. With
    `search_sidecars`, sidecars of a listed image below root are found too; where both know something, the list's column
    counts. Nested columns are left out. Two rows may name the same image.
    `types` gets the names and DuckDB types of the columns that go to metadata, complete with the last row; `passed_over` gets
    notes on values that are left out and on rows of several lines.
    Raises UserError if the list has no rows.
    """
    passed_over = PassedOver() if passed_over is None else passed_over
    types = {} if types is None else types
    folder = parent(uri)
    is_text = suffix_of(uri) in _DELIMITERS
    listing = lru_cache(maxsize=8)(sidecars_in)  # the rows of a list mostly stay in one folder
    number = 0
    for number, columns in enumerate(read_rows(uri, passed_over=passed_over), start=1):
        location = _locate(columns.pop(path_column, None), folder)
        carried = map_columns(columns)
        if carried.left_out:
            passed_over.note(
                "values of lists are left out, their images are kept", f"row {number} of {uri}: {carried.left_out[0]}"
            )
        widen_types(types, carried.all_metadata, is_text=is_text)
        if location is None:
            yield _row_itself(uri, root, number, carried)
        elif is_data_url(location):
            yield _row_itself(uri, root, number, carried)._replace(uri=location, member=None, row=None)
        else:
            sidecars: tuple[SidecarRow, ...] = ()
            if search_sidecars and is_inside(location, root):
                sidecars = listing(parent(location)).get(stem_of(location), ())
            yield IndexRow(
                stem_of(location) or location,
                relative_to(location, root),
                location,
                sidecars=sidecars,
                alt_text=carried.alt_text,
                class_label=carried.class_label,
                metadata=metadata_json(carried.all_metadata),
            )
    if number == 0:
        raise _no_rows(uri)


def _no_rows(uri: str) -> SourceError:
    reason = "no rows, expected a list of images"
    return SourceError(f"{uri} has {reason}; remove it or write it again", reason=reason)


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
    """The location that a path or URL in a list means, or a data URL for an image in base64; None if there is none."""
    if not isinstance(value, str) or not (value := value.strip()):
        return None
    if value.startswith(_BASE64_IMAGES) and len(value) > _LONG_PATH and "." not in value:
        value = f"data:;base64,{value.translate(_URL_SAFE)}"
    if is_data_url(value):
        value = "".join(value.split())
    try:
        value.encode()
    except UnicodeEncodeError:
        return None
    return locate(value, folder)


def _row_itself(uri: str, root: str, number: int, carried: Carried) -> IndexRow:
    """Index entry of a row that names no image."""
    return IndexRow(
        f"{stem_of(uri)}-{number}",
        f"{relative_to(uri, root)}#{number}",
        uri,
        LISTED,
        row=number,
        alt_text=carried.alt_text,
        class_label=carried.class_label,
        metadata=metadata_json(carried.all_metadata),
    )


def _parquet_rows(uri: str) -> Iterator[dict[str, Any]]:
    with open_parquet(uri) as file:
        layout = layout_of(file.schema_arrow)
        for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS, columns=list(layout.types), use_threads=False):
            columns = [values_of(column) for column in batch.columns]
            for row in zip(*columns, strict=True):
                yield name_classes(dict(zip(batch.schema.names, row, strict=True)), layout.class_names)


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
                message = f"line {number} of {uri} is not a JSON object; write one object a line"
                raise SourceError(message, reason=f"line {number} is not a JSON object")
            yield row


def _csv_rows(uri: str, passed_over: PassedOver) -> Iterator[dict[str, Any]]:
    delimiter = _DELIMITERS[suffix_of(uri)]
    csv.field_size_limit(_MAX_FIELD_CHARS)  # of the whole process; its default is less than an image in base64
    with _open_text(uri) as text:
        lines = _Lines(text)
        header: list[str] = []
        for record in _records(lines, header, delimiter=delimiter, uri=uri):
            if not header:
                header += _distinct(record)
                continue
            if len(record) > len(header):
                held = "tabs" if delimiter == "\t" else "commas"
                raise SourceError(
                    f"line {lines.number} of {uri} has more fields than the header; quote fields that hold {held}",
                    reason=f"line {lines.number} has more fields than the header",
                )
            if len(lines.taken) > 1:
                finding = "rows of lists take several lines each, since a quoted field holds line breaks"
                passed_over.note(finding, f"the row that ends in line {lines.number} of {uri}")
            yield dict(itertools.zip_longest(header, record))


def _records(lines: "_Lines", header: Sequence[str], *, delimiter: str, uri: str) -> Iterator[list[str]]:
    """The rows as lists of fields; blank lines are no rows.

    A double quote at the beginning of a field opens a quoted one only where another closes it before a delimiter or the end of
    a line, and not where each of the lines up to there is a row by itself: else all quotes of the line are text.
    Raises UserError if a line then has another number of fields than the header, and where the number of fields alone tells
    rows from lines of a quoted field, since no column holds paths.
    """
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.taken.clear()
        problem = "a double quote opens a field that ends in a later row"
        try:
            record = next(reader, None)
            is_wrong = len(lines.taken) > 1 and _are_rows(lines.taken, header, delimiter=delimiter)
        except csv.Error as error:
            record, is_wrong, problem = [], True, one_line(error)
        if record is None:
            return
        if is_wrong:
            if record and _path_position(header) is None:
                raise _doubtful(lines, uri)
            number = lines.give_back()
            record = lines.taken[0].rstrip("\r\n").split(delimiter)
            if len(record) != len(header) or len(lines.taken[0]) > _MAX_FIELD_CHARS:
                found = f"expected {len(header)} fields, found {len(record)}" if header else "expected the names of the columns"
                raise SourceError(
                    f"line {number} of {uri} cannot be read ({problem}): {found}; "
                    'write "" for a double quote inside of a quoted field, or write the list as .jsonl',
                    reason=f"line {number} cannot be read ({problem})",
                )
        if record:
            yield record


def _path_position(header: Sequence[str]) -> int | None:
    """The position of the column that names images; None if there is none."""
    names = [name.lower() for name in header]
    return next((names.index(name) for name in PATH_NAMES if name in names), None)


def _are_rows(lines: Sequence[str], header: Sequence[str], *, delimiter: str) -> bool:
    """Whether each line that a quoted field joins is a row: as many fields as the header, an image in a column of paths.

    Quotes are text or not, whichever fits; without a column of paths, those of the first line are text.
    """
    path = _path_position(header)

    def is_row(line: str, *, as_text: bool = False) -> bool:
        readings = [line.rstrip("\r\n").split(delimiter)]
        if not as_text:
            readings.append(next(csv.reader([line], delimiter=delimiter), []))
        return any(
            len(fields) == len(header) and (path is None or is_image(fields[path]) or is_url(fields[path]))
            for fields in readings
        )

    return is_row(lines[0], as_text=path is None) and all(map(is_row, lines[1:]))


def _doubtful(lines: "_Lines", uri: str) -> SourceError:
    """The error for lines that may be one row or several."""
    first = lines.number - len(lines.taken) + 1
    reason = (
        f"a double quote in line {first} makes one row of lines {first} to {lines.number}, each of which may be a row by itself"
    )
    advice = (
        'put the field in double quotes and write each of its own as "" if the quote is text; '
        "write the file as .jsonl if the field holds line breaks"
    )
    return SourceError(f"{uri} cannot be read ({reason}): {advice}", reason=reason)


def _distinct(header: Sequence[str]) -> list[str]:
    """The names of the columns; the second of one name is `name_2`, so that no value is lost."""
    names: dict[str, None] = {}
    times: Counter[str] = Counter()
    for name in header:
        numbered = name
        while numbered in names:
            times[name] += 1
            numbered = f"{name}_{times[name] + 1}"
        names[numbered] = None
    return list(names)


class _Lines:
    """The lines of a text, numbered from 1, of which those taken last can be given back."""

    def __init__(self, text: Iterable[str]) -> None:
        self._text = iter(text)
        self._returned: deque[str] = deque()
        self.taken: list[str] = []
        self.number = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._returned.popleft() if self._returned else next(self._text)
        self.number += 1
        self.taken.append(line)
        return line

    def give_back(self) -> int:
        """Gives back all but the first of the lines taken; returns the number of that one."""
        self._returned.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1
        del self.taken[1:]
        return self.number


def _open_text(uri: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(open_binary(uri, sequential=True), encoding="utf-8-sig", newline="")
