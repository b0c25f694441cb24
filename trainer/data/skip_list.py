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
    """The keys of a list, a path or a URL; none where there is no list. Raises UserError for anything else."""
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


def _parquet_keys(data: bytes, location: str) -> list[str]:
    file = pq.ParquetFile(pa.BufferReader(data))
    if "key" not in file.schema_arrow.names:
        raise UserError(f"{location} has no column key, found {', '.join(file.schema_arrow.names)}: {_EXPECTED}")
    column = file.read(columns=["key"])["key"]
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)) or column.null_count:
        raise UserError(f"{location}: the column key is {column.type} with {column.null_count} empty rows: {_EXPECTED}")
    keys: list[str] = column.to_pylist()
    return keys
