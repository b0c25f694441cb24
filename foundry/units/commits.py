"""Protocol of units and commits, the one that captions, scores and features use.

The work is a fixed list of units, planned once (dataset_builder/runs/plan.py). A unit exists only if its commit record does.
A worker writes the unit's tables under unique names, then publishes them by creating `commits/<unit>.json`. Creation is
exclusive: of two workers on one unit the first commits, the other deletes its files. Readers list files from the commits,
never by a glob.
"""

import hashlib
import io
import json
import secrets
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from foundry.errors import UserError
from foundry.storage.folder import Folder
from foundry.storage.schema import SCHEMA_VERSION, versioned

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One piece of the plan: a row group of an index file."""

    number: int
    part: str
    row_group: int
    num_images: int


@dataclass(frozen=True, kw_only=True)
class CommittedFile:
    """A file that a commit publishes. `path` is relative to the run; `../` leads to a file that another run's commit owns."""

    path: str
    rows: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The record that makes a unit exist. planned = completed + num_rejected, in images."""

    run_id: str
    unit: int
    planned: int
    completed: int
    rejected: dict[str, int]
    files: dict[str, CommittedFile]
    num_tokens: int = 0
    num_input_tokens: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    """Captions of the completed images by their status, where it is not ok; empty in older records."""
    seconds: dict[str, float] = field(default_factory=dict)
    attempt: str = ""
    committed_at: str = ""
    schema_version: int = SCHEMA_VERSION

    @property
    def num_rejected(self) -> int:
        """Number of rejected images, of all reasons."""
        return sum(self.rejected.values())


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
    """Writes the tables (by folder name) and publishes them; returns None where the unit was committed already.

    The images of the table `rejected` are counted by their reason; the others of the unit are completed. Tables without rows
    are not written. Those named in `arrow` become uncompressed Arrow files, which a reader maps into memory, the others
    Parquet. `shared` are files that stay another commit's and are published by this one too.
    """
    attempt = secrets.token_hex(4)
    rejected = Counter(tables["rejected"]["reason"].to_pylist() if "rejected" in tables else ())
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
    )
    if folder.create(commit_name(unit.number), json.dumps(asdict(commit), indent=1).encode()):
        return commit
    if read_commit(folder, unit.number).attempt == attempt:
        return commit  # ours: a store whose answer was lost was asked again, and said that the record exists
    for file in files.values():
        folder.filesystem.rm_file(folder.path(file.path))
    return None


def commit_name(unit: int) -> str:
    """The path of a unit's commit record, relative to the run."""
    return f"commits/{unit:08d}.json"


def committed_units(folder: Folder) -> set[int]:
    """The numbers of the units that exist, from the names of their records alone."""
    return {int(name.removesuffix(".json")) for name in folder.names("commits") if name.endswith(".json")}


def read_commit(folder: Folder, unit: int) -> Commit:
    """The commit record of a unit. Raises FileNotFoundError where it is not committed."""
    return _parse(folder.read(commit_name(unit)))


def read_commits(folder: Folder) -> list[Commit]:
    """All commit records in the order of their units."""
    names = [commit_name(unit) for unit in sorted(committed_units(folder))]
    return [_parse(data) for data in folder.read_many(names).values()]


def check_not_all(folder: Folder, *, num_not_finite: int, num_images: int, advice: str) -> None:
    """Raises UserError where the model computes NaN or infinity for all images of a unit, and nothing is committed yet: then
    the model is at fault. A single image proves nothing.
    """
    if num_not_finite == num_images > 1 and not committed_units(folder):
        raise UserError(f"the model computes NaN or infinity for all {num_images} images of the first unit: {advice}")


def read_unit(run: Folder, unit: Unit) -> list[dict[str, Any]]:
    """The index rows (index.INDEX) of a unit."""
    import pyarrow.parquet as pq

    with run.open(unit.part) as file:
        rows: list[dict[str, Any]] = pq.ParquetFile(file).read_row_group(unit.row_group).to_pylist()
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


def _write_table(folder: Folder, *, kind: str, unit: Unit, attempt: str, table: "pa.Table", as_arrow: bool) -> CommittedFile:
    data = arrow_bytes(table) if as_arrow else table_bytes(table)
    path = f"{kind}/{unit.number:08d}-{attempt}.{'arrow' if as_arrow else 'parquet'}"
    if not folder.create(path, data):
        raise FileExistsError(f"{path} exists: two attempts drew the same random name")
    return CommittedFile(path=path, rows=len(table), num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _parse(data: bytes) -> Commit:
    record: dict[str, Any] = json.loads(data)
    if record["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"a commit has schema version {record['schema_version']}, this program reads {SCHEMA_VERSION}")
    record["files"] = {kind: CommittedFile(**file) for kind, file in record["files"].items()}
    return Commit(**record)
