"""List of samples to leave out of a training: a text file with a key on each line, or Parquet with a column `key`."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from foundry.errors import UserError
from foundry.storage.folder import new_file
from foundry.storage.locations import normalise, open_binary, read_errors

_PARQUET = b"PAR1"
_EXPECTED = "expected a text file with a sample's key on each line, or Parquet with a column `key` of text"


def read_skip_list(location: str | None) -> frozenset[str]:
    """The keys of a list, a path or a URL; none if there is no list. Raises UserError for anything else."""
    if location is None:
        return frozenset()
    with read_errors(location, _EXPECTED), open_binary(normalise(location), sequential=True) as file:
        data = file.read()
    if data.startswith(_PARQUET):
        with read_errors(location, _EXPECTED):
            return frozenset(_parquet_keys(data, location))
    try:
        lines = data.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{location} is neither UTF-8 nor Parquet ({error.reason} at byte {error.start}): {_EXPECTED}"
        ) from None
    return frozenset(line for line in lines if line)


def write_skip_list(path: Path, keys: Iterable[str]) -> None:
    """Writes a list as text, each key once, whole or not at all."""
    with new_file(path) as partial:
        partial.write_text("".join(f"{key}\n" for key in sorted(set(keys))), encoding="utf-8")


def check_keys(table: pa.Table, *, where: str, expected: str = _EXPECTED) -> pa.ChunkedArray:
    """The column `key` of a table. Raises UserError if it is missing, no text, or has empty rows."""
    if "key" not in table.schema.names:
        raise UserError(f"{where} has no column key, found {', '.join(table.schema.names)}: {expected}")
    column = table["key"]
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)) or column.null_count:
        raise UserError(f"{where}: the column key is {column.type} with {column.null_count} empty rows: {expected}")
    return column.cast(pa.string())


def _parquet_keys(data: bytes, location: str) -> list[str]:
    file = pq.ParquetFile(pa.BufferReader(data))
    names = [name for name in file.schema_arrow.names if name == "key"] or None  # all of them, to name them in the error
    keys: list[str] = check_keys(file.read(columns=names), where=location).to_pylist()
    return keys
