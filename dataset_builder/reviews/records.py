"""Reviews of a captioning run: edits of captions and flags, written by people and kept next to what the model wrote.

A save is one file, `edits/<revision>-<digits>.json` or `flags/<time>-<digits>.json`, created whole or not at all; files are
never changed or removed. The last row of a caption, in the order of the files' names, counts: `is_current` in the views `edits`
and `flags` of a run. The name of an edit follows from the edit that it replaces, so that of two people who replace the same one
only the first can create it. The captions themselves stay as they were written; dataset_builder.build takes the edited text in
place of the original.
"""

import hashlib
import json
import re
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
_REVISION = re.compile(r"\d{8}T\d{6}(?:\.\d{6})?")
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
    """The tables schema.EDITS and schema.FLAGS of a run, in the order of their files' names."""

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
    tables, files = {}, review_files(run)
    for name, schema in _FOLDERS.items():
        paths = [path for path in files if path.startswith(f"{name}/")]
        rows = [row for path, data in run.read_many(paths).items() for row in _rows(run, path, data)]
        tables[name] = _with_current(rows, schema)
    return Reviews(edits=tables["edits"], flags=tables["flags"], files=files)


def review_files(run: Folder) -> tuple[str, ...]:
    """The files that `read_reviews` reads. They are never changed: the same names are the same reviews."""
    return tuple(f"{name}/{file}" for name in _FOLDERS for file in run.names(name) if file.endswith(".json"))


def save_edit(run: Folder, edit: Edit, *, replaces: str = "") -> str | None:
    """Saves an edit and returns the name of its file; None, and saves nothing, where somebody has replaced the same one before.

    `replaces`: the file of the edit that this one replaces, "" for the caption as the model wrote it. Raises UserError where
    the folder cannot be written.
    """
    row = {**asdict(edit), **edit.counted}
    del row["counted"]
    replaced = [edit.key, edit.prompt, replaces]
    path = f"edits/{_revision_after(replaces)}-{hashlib.sha256(json.dumps(replaced).encode()).hexdigest()[:16]}.json"
    return path if _create(run, path, [row]) else None


def save_flags(run: Folder, flags: Sequence[FlagRow]) -> str:
    """Saves flags together and returns the name of their file. Raises UserError where the folder cannot be written."""
    path = f"flags/{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{secrets.token_hex(4)}.json"  # names sort in the order of their saves
    assert _create(run, path, [asdict(flag) for flag in flags]), "the name is new"
    return path


def _create(run: Folder, path: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Creates a file of reviews; False where there is one of this name."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    record = {"format_version": FORMAT_VERSION, "saved_at": now, path.partition("/")[0]: list(rows)}
    with store_errors(run):
        return run.create(path, json.dumps(record, ensure_ascii=False, indent=1).encode())


def _revision_after(replaced: str) -> str:
    """The beginning of a name that sorts after that of the edit that is replaced: its number plus one, in the form of a time.

    Earlier versions began names with the time. Raises UserError for a name of another form.
    """
    stem = replaced.rpartition("/")[2].partition("-")[0]
    if replaced and not _REVISION.fullmatch(stem):
        raise UserError(f"{replaced}: expected a name such as 00000000T000000.000001-0a1b.json: move this file out of the run")
    number = int(stem.replace("T", "").replace(".", "").ljust(20, "0")) + 1
    digits = f"{number:020d}"
    return f"{digits[:8]}T{digits[8:14]}.{digits[14:]}"


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
