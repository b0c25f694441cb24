"""Commit record of a unit: what it says."""

import json
from dataclasses import dataclass, field
from typing import Any

from foundry.storage.schema import SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class CommittedFile:
    """A file that a commit publishes. `path` is relative to the run; `../` leads to a file that another run's commit owns."""

    path: str
    rows: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The record that makes a unit exist. planned = completed + num_rejected, in images.

    In the record of a retry all counts are of the images that it tried; foundry/units/commits.py adds up a unit's records.
    """

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
    retry: int = 0
    """Number of the newest retry; 0 if there was none."""
    retried: dict[str, int] = field(default_factory=dict)
    """Rejected images that this retry tried again, by the reason that they had."""
    schema_version: int = SCHEMA_VERSION

    @property
    def num_rejected(self) -> int:
        """Number of rejected images, of all reasons."""
        return sum(self.rejected.values())


def parse_commit(data: bytes) -> Commit:
    """The record in a file. Raises ValueError for another schema version."""
    record: dict[str, Any] = json.loads(data)
    if record["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"a commit has schema version {record['schema_version']}, this program reads {SCHEMA_VERSION}")
    record["files"] = {kind: CommittedFile(**file) for kind, file in record["files"].items()}
    return Commit(**record)
