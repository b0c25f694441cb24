"""Commit records as one table, which is a sixth of the size of their JSON and read several times as fast."""

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Any

import pyarrow as pa

from foundry.records.commit import Commit, CommittedFile

_TEXTS = ("run_id", "attempt", "committed_at")
_NUMBERS = ("unit", "planned", "completed", "num_tokens", "num_input_tokens", "retry")
_COUNTS = ("rejected", "statuses", "retried", "seconds")
"""Columns of JSON."""
_FILE = pa.struct(
    {"kind": pa.string(), "path": pa.string(), "rows": pa.int64(), "num_bytes": pa.int64(), "sha256": pa.string()}
)
COMMITS = pa.schema(
    {
        **dict.fromkeys([*_TEXTS, *_COUNTS], pa.string()),
        **dict.fromkeys(_NUMBERS, pa.int64()),
        "files": pa.list_(_FILE),
    }
)
"""The columns of a table of commit records."""


def commits_table(commits: Sequence[Commit]) -> pa.Table:
    """Records as a table of COMMITS."""
    found: dict[str, list[Any]] = {name: [getattr(one, name) for one in commits] for name in (*_TEXTS, *_NUMBERS)}
    found |= {name: [json.dumps(getattr(one, name)) for one in commits] for name in _COUNTS}
    found["files"] = [[{"kind": kind, **vars(file)} for kind, file in one.files.items()] for one in commits]
    return pa.table({name: found[name] for name in COMMITS.names}, schema=COMMITS)


def commits_of(table: pa.Table) -> list[Commit]:
    """The records in a table of COMMITS."""
    with _no_collection():
        columns = {name: table[name].to_pylist() for name in (*_TEXTS, *_NUMBERS)}
        columns |= {name: [_counts(text).copy() for text in table[name].to_pylist()] for name in _COUNTS}
        columns["files"] = list(_files(table["files"].combine_chunks()))
        names = list(columns)
        return [Commit(**dict(zip(names, values, strict=True))) for values in zip(*columns.values(), strict=True)]


def _files(column: Any) -> Iterator[dict[str, CommittedFile]]:
    """The files of each record in the column of that name."""
    if not len(column):
        return
    struct = column.values
    kinds, paths, digests = (struct.field(name).to_pylist() for name in ("kind", "path", "sha256"))
    rows, sizes = (struct.field(name).to_numpy().tolist() for name in ("rows", "num_bytes"))
    files = [
        CommittedFile(path=path, rows=number, num_bytes=size, sha256=digest)
        for path, number, size, digest in zip(paths, rows, sizes, digests, strict=True)
    ]
    offsets = column.offsets.to_pylist()
    for start, stop in pairwise(offsets):
        yield dict(zip(kinds[start:stop], files[start:stop], strict=True))


@lru_cache(maxsize=4096)
def _counts(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


@contextmanager
def _no_collection() -> Iterator[None]:
    """Puts garbage collection off: among a million new objects that stay it looks for garbage again and again.

    Then they count as old ones, so that the next collection does not look at all of them either.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.freeze()
            gc.unfreeze()
            gc.enable()
