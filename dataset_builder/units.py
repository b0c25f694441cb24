"""The one protocol of units and commits: captions, scores and features all use it.

The work is a fixed list of units, planned once (plan.py). A unit exists only if its commit record does. Whoever works on
a unit writes its tables under names that nobody else has, then publishes them by creating `commits/<unit>.json`, which
only the first can do: a slow twin deletes its own files and leaves. Readers list files from the commits, never by a glob.
"""

import hashlib
import io
import json
import secrets
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dataset_builder.schema import SCHEMA_VERSION, versioned
from dataset_builder.storage import Folder

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
class Failure:
    """Why an image is not used: a key of rejection.REJECTION_REASONS and what was found."""

    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class CommittedFile:
    """A file that a commit publishes. `path` is relative to the run."""

    path: str
    rows: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The record that makes a unit exist. planned = completed + sum(rejected.values()), in images."""

    run_id: str
    unit: int
    planned: int
    completed: int
    rejected: dict[str, int]
    files: dict[str, CommittedFile]
    num_tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    attempt: str = ""
    committed_at: str = ""
    schema_version: int = SCHEMA_VERSION


def commit_unit(
    folder: Folder,
    *,
    run_id: str,
    unit: Unit,
    tables: "dict[str, pa.Table]",
    rejected: dict[str, int],
    num_tokens: int = 0,
    seconds: dict[str, float] | None = None,
) -> Commit | None:
    """Writes the tables (by folder name) and publishes them; returns None where the unit was committed already.

    Tables without rows are not written.
    """
    attempt = secrets.token_hex(4)
    files = {
        kind: _write_table(folder, kind=kind, unit=unit, attempt=attempt, table=table)
        for kind, table in tables.items()
        if len(table)
    }
    commit = Commit(
        run_id=run_id,
        unit=unit.number,
        planned=unit.num_images,
        completed=unit.num_images - sum(rejected.values()),
        rejected=rejected,
        files=files,
        num_tokens=num_tokens,
        seconds=seconds or {},
        attempt=attempt,
        committed_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    if folder.create(commit_name(unit.number), json.dumps(asdict(commit), indent=1).encode()):
        return commit
    if _parse(folder.read(commit_name(unit.number))).attempt == attempt:
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


def read_commits(folder: Folder) -> list[Commit]:
    """All commit records in the order of their units."""
    names = [commit_name(unit) for unit in sorted(committed_units(folder))]
    return [_parse(data) for data in folder.read_many(names).values()]


def table_bytes(table: "pa.Table") -> bytes:
    """A table as one Parquet file (zstd), the same bytes for the same table."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table.cast(versioned(table.schema)), buffer, compression="zstd")
    return buffer.getvalue()


def _write_table(folder: Folder, *, kind: str, unit: Unit, attempt: str, table: "pa.Table") -> CommittedFile:
    data = table_bytes(table)
    path = f"{kind}/{unit.number:08d}-{attempt}.parquet"
    if not folder.create(path, data):
        raise FileExistsError(f"{path} exists: two attempts drew the same random name")
    return CommittedFile(path=path, rows=len(table), num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _parse(data: bytes) -> Commit:
    record: dict[str, Any] = json.loads(data)
    if record["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"a commit has schema version {record['schema_version']}, this program reads {SCHEMA_VERSION}")
    record["files"] = {kind: CommittedFile(**file) for kind, file in record["files"].items()}
    return Commit(**record)
