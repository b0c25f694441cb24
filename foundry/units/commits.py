"""Protocol of units and commits, the one that captions, scores and features use.

The work is a fixed list of units, planned once (dataset_builder/runs/plan.py). A unit exists only if its commit record does.
A worker writes the unit's tables under unique names, then publishes them by creating `commits/<unit>.json`. Creation is
exclusive: of two workers on one unit the first commits, the other deletes its files. Readers list files from the commits,
never by a glob. The records of a large store are read from their index (foundry/records/index.py).

A retry (retries.py) is another attempt at images of a committed unit that were rejected. Its record, `retries/<unit>-<n>.json`,
is created the same way and follows the unit's earlier ones: it counts the images that it tried, and its files hold the whole
unit as it is now, so that one image is in one place. Earlier records and their files stay as they are.
"""

import hashlib
import io
import json
import secrets
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import reduce
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from foundry.errors import UserError
from foundry.records.commit import Commit, CommittedFile, parse_commit
from foundry.storage.folder import Folder
from foundry.storage.schema import versioned

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "RETRIED",
    "Commit",
    "CommittedFile",
    "Rejections",
    "Unit",
    "arrow_bytes",
    "check_not_all",
    "commit_name",
    "commit_unit",
    "committed_retries",
    "committed_units",
    "named_files",
    "read_commit",
    "read_commits",
    "read_unit",
    "row_groups_bytes",
    "table_bytes",
]

RETRIED = "retried"
"""The table of earlier rejections of images that were tried again: the rows of `rejected`, with the number of the retry."""
_RETRIES = "retries"


@dataclass(frozen=True, kw_only=True)
class Rejections:
    """Rejected images that a retry tries again: the rows with these reasons, or of all for none, of a table `rejected`."""

    path: str
    """The table, relative to the run."""
    reasons: tuple[str, ...] = ()

    def read(self, folder: Folder) -> "pa.Table":
        """The rows."""
        import pyarrow as pa
        import pyarrow.compute as pc

        rejected = _read_table(folder, self.path)
        return rejected.filter(pc.is_in(rejected["reason"], pa.array(self.reasons))) if self.reasons else rejected


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One piece of the plan: a row group of an index file, or of a retry, the images of it that are tried again."""

    number: int
    part: str
    row_group: int
    num_images: int
    retry: int = 0
    """Number of the retry; 0 for the first attempt. A retry without `rejections` replaces what the unit was before."""
    rejections: Rejections | None = None
    """The images that a retry tries again."""


def commit_unit(
    folder: Folder,
    *,
    run_id: str,
    unit: Unit,
    tables: "dict[str, pa.Table]",
    num_tokens: int = 0,
    num_input_tokens: int = 0,
    statuses: dict[str, int] | None = None,
    seconds: dict[str, float] | None = None,
    arrow: Collection[str] = (),
    shared: Mapping[str, CommittedFile] | None = None,
) -> Commit | None:
    """Writes the tables (by folder name) and publishes them; returns None if the unit was committed already.

    The images of the table `rejected` are counted by their reason; the others of the unit are completed. Tables without rows
    are not written. Those named in `arrow` become uncompressed Arrow files, which a reader maps into memory, the others
    Parquet. `shared` are files that stay another commit's and are published by this one too. Tables of a retry are added to
    those of the unit, and what it tried becomes the table `retried`.
    """
    attempt = secrets.token_hex(4)
    rejected = Counter(tables["rejected"]["reason"].to_pylist() if "rejected" in tables else ())
    retried: Counter[str] = Counter()
    if unit.rejections is not None:
        assert not arrow, "a retry adds to Parquet files alone"
        tried = unit.rejections.read(folder)
        retried = Counter(tried["reason"].to_pylist())
        tables, kept = _with_earlier(folder, unit, tables, tried)
        shared = kept | dict(shared or {})
    files = {
        kind: _write_table(folder, kind=kind, unit=unit, attempt=attempt, table=table, as_arrow=kind in arrow)
        for kind, table in tables.items()
        if len(table)
    }
    commit = Commit(
        run_id=run_id,
        unit=unit.number,
        planned=unit.num_images,
        completed=unit.num_images - rejected.total(),
        rejected=dict(rejected),
        files={**files, **(shared or {})},
        num_tokens=num_tokens,
        num_input_tokens=num_input_tokens,
        statuses=statuses or {},
        seconds=seconds or {},
        attempt=attempt,
        committed_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        retry=unit.retry,
        retried=dict(retried),
    )
    name = commit_name(unit.number, unit.retry)
    if folder.create(name, json.dumps(asdict(commit), indent=1).encode()):
        return commit
    if parse_commit(folder.read(name)).attempt == attempt:
        return commit  # ours: a store whose answer was lost was asked again, and said that the record exists
    for file in files.values():
        folder.filesystem.rm_file(folder.path(file.path))
    return None


def commit_name(unit: int, retry: int = 0) -> str:
    """The path of a unit's commit record, or of that of a retry of it, relative to the run."""
    return f"{_RETRIES}/{unit:08d}-{retry}.json" if retry else f"commits/{unit:08d}.json"


def committed_units(folder: Folder) -> set[int]:
    """The numbers of the units that exist, from the names of their records alone."""
    return {int(name.removesuffix(".json")) for name in folder.names("commits") if name.endswith(".json")}


def committed_retries(folder: Folder) -> dict[int, list[int]]:
    """The numbers of the retries of each unit that has any, in their order."""
    found: dict[int, list[int]] = {}
    for name in folder.names(_RETRIES):
        unit, _, retry = name.removesuffix(".json").partition("-")
        found.setdefault(int(unit), []).append(int(retry))
    return {unit: sorted(retries) for unit, retries in found.items()}


def read_commit(folder: Folder, unit: int, *, before_retry: int | None = None) -> Commit:
    """The unit as it is now, or as it was before a retry. Raises FileNotFoundError if it is not committed."""
    retries = committed_retries(folder).get(unit, [])
    names = [commit_name(unit), *(commit_name(unit, n) for n in retries if before_retry is None or n < before_retry)]
    return reduce(_followed_by, [parse_commit(folder.read(name)) for name in names])


def read_commits(folder: Folder) -> list[Commit]:
    """All units that exist, as they are now, in their order."""
    records = sorted(_records(folder).values(), key=attrgetter("unit", "retry"))
    if not any(record.retry for record in records):
        return records
    by_unit: dict[int, list[Commit]] = {}
    for record in records:
        if record.unit in by_unit or not record.retry:
            by_unit.setdefault(record.unit, []).append(record)
    return [reduce(_followed_by, own) for own in by_unit.values()]


def named_files(folder: Folder) -> set[str]:
    """Paths, inside the filesystem, of the files that any record names, also one that a retry has followed."""
    return {folder.path(file.path) for record in _records(folder).values() for file in record.files.values()}


def check_not_all(folder: Folder, *, num_not_finite: int, num_images: int, advice: str) -> None:
    """Raises UserError if the model computes NaN or infinity for all images of a unit, and nothing is committed yet: then
    the model is at fault. A single image proves nothing.
    """
    if num_not_finite == num_images > 1 and not committed_units(folder):
        raise UserError(f"the model computes NaN or infinity for all {num_images} images of the first unit: {advice}")


def read_unit(run: Folder, unit: Unit) -> list[dict[str, Any]]:
    """The index rows (index.INDEX) of a unit; of a retry, those of the images that it tries again."""
    import pyarrow.parquet as pq

    with run.open(unit.part) as file:
        rows: list[dict[str, Any]] = pq.ParquetFile(file).read_row_group(unit.row_group).to_pylist()
    if unit.rejections is not None:
        keys = set(unit.rejections.read(run)["key"].to_pylist())
        rows = [row for row in rows if row["key"] in keys]
    assert len(rows) == unit.num_images, (unit, len(rows))
    return rows


def table_bytes(table: "pa.Table") -> bytes:
    """A table as one Parquet file (zstd), the same bytes for the same table."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table.cast(versioned(table.schema)), buffer, compression="zstd")
    return buffer.getvalue()


def arrow_bytes(table: "pa.Table") -> bytes:
    """A table as one uncompressed Arrow file of one record batch."""
    import pyarrow as pa

    schema = versioned(table.schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(table.replace_schema_metadata(schema.metadata).combine_chunks())
    data: bytes = sink.getvalue().to_pybytes()
    return data


def row_groups_bytes(tables: "Sequence[pa.Table]") -> bytes:
    """Tables of one schema as one Parquet file (zstd), a row group each: what a plan's units are read from."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, versioned(tables[0].schema), compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.cast(versioned(table.schema)).combine_chunks(), row_group_size=len(table))
    return buffer.getvalue()


def _records(folder: Folder) -> dict[str, Commit]:
    """All commit records, also those of retries, by their paths."""
    from foundry.records.index import read_records

    return read_records(folder, ("commits", _RETRIES))


def _write_table(folder: Folder, *, kind: str, unit: Unit, attempt: str, table: "pa.Table", as_arrow: bool) -> CommittedFile:
    data = arrow_bytes(table) if as_arrow else table_bytes(table)
    path = f"{kind}/{unit.number:08d}-{attempt}.{'arrow' if as_arrow else 'parquet'}"
    if not folder.create(path, data):
        raise FileExistsError(f"{path} exists: two attempts drew the same random name")
    return CommittedFile(path=path, rows=len(table), num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _with_earlier(
    folder: Folder, unit: Unit, tables: "dict[str, pa.Table]", tried: "pa.Table"
) -> "tuple[dict[str, pa.Table], dict[str, CommittedFile]]":
    """The tables of a retry with the rows that its unit had before, and the files of the unit that no row is added to."""
    import pyarrow as pa
    import pyarrow.compute as pc

    files = read_commit(folder, unit.number, before_retry=unit.retry).files
    rejected = _read_table(folder, files["rejected"].path)
    left = rejected.filter(pc.invert(pc.is_in(rejected["key"], tried["key"].combine_chunks())))
    numbers = pa.field("retry", pa.int32(), nullable=False), pa.array([unit.retry] * len(tried), pa.int32())
    added = {kind: table for kind, table in tables.items() if kind != "rejected" and len(table)}
    added[RETRIED] = tried.append_column(*numbers)
    earlier = {kind: [_read_table(folder, files[kind].path)] for kind in added if kind in files}
    whole = {kind: _joined([*earlier.get(kind, ()), table]) for kind, table in added.items()}
    whole["rejected"] = _joined([left, *([tables["rejected"]] if "rejected" in tables else [])])
    return whole, {kind: file for kind, file in files.items() if kind not in whole}


def _joined(tables: "Sequence[pa.Table]") -> "pa.Table":
    import pyarrow as pa

    return pa.concat_tables([table.replace_schema_metadata() for table in tables], promote_options="default")


def _read_table(folder: Folder, path: str) -> "pa.Table":
    import pyarrow.parquet as pq

    with folder.open(path) as file:
        return pq.ParquetFile(file).read()


def _followed_by(earlier: Commit, retry: Commit) -> Commit:
    """The unit after a retry: the counts of both, the files of the retry."""
    if not retry.retried:
        return retry
    rejected = Counter(earlier.rejected)
    rejected.subtract(retry.retried)
    rejected.update(retry.rejected)
    return replace(
        retry,
        planned=earlier.planned,
        completed=earlier.completed + retry.completed,
        rejected={reason: number for reason, number in rejected.items() if number},
        num_tokens=earlier.num_tokens + retry.num_tokens,
        num_input_tokens=earlier.num_input_tokens + retry.num_input_tokens,
        statuses=dict(Counter(earlier.statuses) + Counter(retry.statuses)),
        seconds=dict(Counter(earlier.seconds) + Counter(retry.seconds)),
    )
