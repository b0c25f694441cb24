"""Reviews of a captioning run: edits of captions and flags, written by people and kept next to what the model wrote.

A save is one file, `edits/<time>-<digits>.json` or `flags/<time>-<digits>.json`, created whole or not at all; files are never
changed or removed. The newest row of a caption counts: `is_current` in the views `edits` and `flags` of a run. The captions
themselves stay as they were written; dataset_builder.build takes the edited text in place of the original.
"""

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import pyarrow as pa

from dataset_builder.schema import EDITS, FLAGS
from foundry.errors import UserError
from foundry.storage.folder import Folder, store_errors

FORMAT_VERSION = 1
Flag = Literal["good", "bad", "look again"]
FLAG_VALUES: tuple[Flag, ...] = get_args(Flag)
_FOLDERS = {"edits": EDITS, "flags": FLAGS}


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A caption that a person rewrote. `counted` are the columns edited_captions.COUNTED of the new text."""

    key: str
    prompt: str
    edited_by: str
    before: str
    after: str
    counted: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class FlagRow:
    """A person's judgement of a caption; an empty flag takes the one before back."""

    key: str
    prompt: str
    flagged_by: str
    flag: Flag | Literal[""]


@dataclass(frozen=True)
class Reviews:
    """The tables schema.EDITS and schema.FLAGS of a run, in the order in which they were saved."""

    edits: pa.Table = field(default_factory=EDITS.empty_table)
    flags: pa.Table = field(default_factory=FLAGS.empty_table)
    files: tuple[str, ...] = ()
    """The files that they were read from."""

    def current_edits(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The edit that counts, by key and prompt."""
        return {(row["key"], row["prompt"]): row for row in self.edits.to_pylist() if row["is_current"]}

    def current_flags(self) -> dict[tuple[str, str], str]:
        """The flag that counts, by key and prompt; captions whose flag was taken back have none."""
        rows = self.flags.to_pylist()
        return {(row["key"], row["prompt"]): row["flag"] for row in rows if row["is_current"] and row["flag"]}


def read_reviews(run: Folder) -> Reviews:
    """All edits and flags of a run. Raises UserError for a file that is damaged or of a newer version."""
    tables, files = {}, []
    for name, schema in _FOLDERS.items():
        paths = [f"{name}/{file}" for file in run.names(name) if file.endswith(".json")]
        rows = [row for path, data in run.read_many(paths).items() for row in _rows(run, path, data)]
        tables[name] = _with_current(rows, schema)
        files += paths
    return Reviews(edits=tables["edits"], flags=tables["flags"], files=tuple(files))


def save_edits(run: Folder, edits: Sequence[Edit]) -> str:
    """Saves edits together and returns the name of their file. Raises UserError where the folder cannot be written."""
    rows = [{**asdict(edit), **edit.counted} for edit in edits]
    return _save(run, "edits", [{name: value for name, value in row.items() if name != "counted"} for row in rows])


def save_flags(run: Folder, flags: Sequence[FlagRow]) -> str:
    """Saves flags together and returns the name of their file. Raises UserError where the folder cannot be written."""
    return _save(run, "flags", [asdict(flag) for flag in flags])


def _save(run: Folder, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Creates a file whose name begins with the time, so that files sort in the order of their saves."""
    now = datetime.now(UTC)
    path = f"{name}/{now:%Y%m%dT%H%M%S.%f}-{secrets.token_hex(4)}.json"
    record = {"format_version": FORMAT_VERSION, "saved_at": now.isoformat(timespec="milliseconds"), name: list(rows)}
    with store_errors(run):
        assert run.create(path, json.dumps(record, ensure_ascii=False, indent=1).encode()), "the name is new"
    return path


def _rows(run: Folder, path: str, data: bytes) -> Iterable[dict[str, Any]]:
    kind = path.partition("/")[0]
    time = {"edits": "edited_at", "flags": "flagged_at"}[kind]
    try:
        record = json.loads(data)
        version, saved_at = record["format_version"], datetime.fromisoformat(record["saved_at"])
        rows = [{**row, time: saved_at, "file": path} for row in record[kind]]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{run.url}/{path} is damaged ({type(error).__name__}: {error}): move it out of the run") from None
    if version != FORMAT_VERSION:
        raise UserError(f"{run.url}/{path} has format version {version}, this program reads {FORMAT_VERSION}: update it")
    return rows


def _with_current(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """The table; of the rows of a caption, the last one counts."""
    if not rows:
        return pa.Table.from_batches([], schema=schema)  # pyarrow imports pandas for what comes from Python's values
    last = {(row["key"], row["prompt"]): number for number, row in enumerate(rows)}
    marked = [{**row, "is_current": last[row["key"], row["prompt"]] == number} for number, row in enumerate(rows)]
    return pa.Table.from_pylist(marked, schema=schema)
