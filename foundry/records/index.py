"""Index of a store's commit records: one file in place of one for each unit, which is read in their stead.

The records stay the truth, and `commit_index.parquet` is only a copy of them, with the size and the time of change that each
had. A reader lists the records, takes from the index those that are still the same, and reads the others. Once these are many
it writes a new index, by rename: processes that do so at the same time do each other no harm, and where the folder cannot be
written the records are read as before. An index that cannot be read is said, and replaced.
"""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from foundry.errors import UserError, one_line
from foundry.records.commit import Commit, parse_commit
from foundry.records.packing import COMMITS, commits_of, commits_table
from foundry.reporting.lines import say
from foundry.storage.folder import Folder
from foundry.storage.locations import is_store_failure
from foundry.storage.schema import check_version, versioned

INDEX_FILE = "commit_index.parquet"
INDEX_VERSION = 1
_VERSION_KEY = b"t2i_foundry.index_version"
_INDEX = pa.schema([pa.field("name", pa.string()), pa.field("stamp", pa.string()), *COMMITS])
LEAST_RECORDS = 256
"""Stores with fewer records get no index."""
MOST_READ_SHARE = 16
"""The index is written again when this part of the records (1/16), and LEAST_RECORDS, had to be read."""


def read_records(folder: Folder, folders: tuple[str, ...]) -> dict[str, Commit]:
    """The commit records in these folders of a store, by their paths, sorted.

    Raises ValueError for a record of another schema version.
    """
    stamps = {f"{name}/{file}": stamp for name in folders for file, stamp in folder.stamps(name).items() if is_record(file)}
    if len(stamps) < LEAST_RECORDS:
        return {name: parse_commit(data) for name, data in folder.read_many(list(stamps)).items()}
    table = _read_index(folder)
    found = {} if table is None else _unchanged(table, stamps)
    missing = [name for name in stamps if name not in found]
    found |= {name: parse_commit(data) for name, data in folder.read_many(missing).items()}
    records = {name: found[name] for name in stamps}
    if table is None or len(missing) >= max(LEAST_RECORDS, len(stamps) // MOST_READ_SHARE):
        _write_index(folder, records, stamps)
    return records


def is_record(name: str) -> bool:
    """Whether a file in a folder of records is one, by its name."""
    return name.endswith(".json")


def _unchanged(table: pa.Table, stamps: Mapping[str, str]) -> dict[str, Commit]:
    """The records of an index that are as they were when it was written."""
    names, then = table["name"].to_pylist(), table["stamp"].to_pylist()
    is_same = [bool(stamp) and stamps.get(name) == stamp for name, stamp in zip(names, then, strict=True)]
    if not all(is_same):
        table = table.filter(pa.array(is_same, pa.bool_()))
        names = table["name"].to_pylist()
    return dict(zip(names, commits_of(table), strict=True))


def _read_index(folder: Folder) -> pa.Table | None:
    """The index; None where there is none that can be used."""
    try:
        table = pq.read_table(pa.BufferReader(folder.read(INDEX_FILE)))
        version = (table.schema.metadata or {}).get(_VERSION_KEY, b"none").decode()
        if version != str(INDEX_VERSION) or not table.schema.equals(_INDEX):
            raise ValueError(f"expected an index of version {INDEX_VERSION}, found version {version}")
        check_version(table.schema, where=INDEX_FILE)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, pa.ArrowException) as error:
        say(
            f"{folder.location(INDEX_FILE)} cannot be used ({one_line(error, limit=200)}): "
            "the commit records are read one by one and the index is written again; nothing is lost",
            err=True,
        )
        return None
    return table


def _write_index(folder: Folder, records: Mapping[str, Commit], stamps: Mapping[str, str]) -> None:
    """Writes the index of these records; where the folder cannot be written, does nothing."""
    table = commits_table(list(records.values()))
    for index, (name, values) in enumerate((("name", list(records)), ("stamp", [stamps[name] for name in records]))):
        table = table.add_column(index, name, pa.array(values, pa.string()))
    schema = versioned(table.schema)
    table = table.replace_schema_metadata({**(schema.metadata or {}), _VERSION_KEY: str(INDEX_VERSION)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    try:
        folder.write(INDEX_FILE, sink.getvalue().to_pybytes())
    except Exception as error:
        if not isinstance(error, UserError) and not is_store_failure(error, folder.url):
            raise
