"""Prompts from a file: a line each (.txt), an object each (.jsonl) or a row each (.csv, .tsv)."""

import json
import logging
from pathlib import Path
from typing import Any

from foundry.errors import UserError
from foundry.storage.file_kinds import PassedOver

logger = logging.getLogger(__name__)


def read_prompts(path: str | Path, *, column: str = "prompt", setting: str = "prompt_column") -> tuple[str, ...]:
    """The prompts of a file, each once, in order; blank lines are no prompts.

    `column` is the key of .jsonl, .csv and .tsv, `setting` the configuration field that names it. Raises UserError, with the
    line or row, for what is not such a file, for quotes that may join several rows to one, and for an empty file.
    """
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"prompts file {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"prompts file {file} is not UTF-8 (byte {error.start})") from error
    if file.suffix == ".txt":
        rows = [line for line in text.splitlines() if line.strip()]
    elif file.suffix == ".jsonl":
        rows = _read_jsonl(text, column, file)
    elif file.suffix in (".csv", ".tsv"):
        rows = _read_csv(column, file, setting=setting)
    else:
        raise UserError(f"prompts file {file}: expected .txt, .jsonl, .csv or .tsv, found {file.suffix or 'no suffix'}")
    if not rows:
        raise UserError(f"prompts file {file} is empty: expected a prompt at least")
    return tuple(dict.fromkeys(row.strip() for row in rows))


def read_table_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a .csv or .tsv file of prompts, with one warning where rows take several lines.

    Raises UserError that names the unreadable row.
    """
    from foundry.images.lists import read_rows

    passed_over = PassedOver()
    rows = list(read_rows(str(file), passed_over=passed_over))
    for finding, (count, first) in passed_over.notes.items():
        logger.warning("%d %s; the first: %s", count, finding.replace("rows of lists", "rows of prompts"), first)
    return rows


def _read_jsonl(text: str, column: str, file: Path) -> list[str]:
    prompts = []
    # Not splitlines(): JSON may hold separators of lines other than this one.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"prompts file {file}, line {number}: not JSON ({error.msg})") from error
        prompt = row.get(column) if isinstance(row, dict) else None
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(
                f"prompts file {file}, line {number}: expected an object with text in {column!r}, found {line[:80]}"
            )
        prompts.append(prompt)
    return prompts


def _read_csv(column: str, file: Path, *, setting: str) -> list[str]:
    prompts = []
    for number, row in enumerate(read_table_rows(file), 1):
        if column not in row:
            raise UserError(
                f"prompts file {file} has no column {column!r}, it has {', '.join(row)}: choose one", setting=setting
            )
        if not (row[column] or "").strip():
            raise UserError(f"prompts file {file}, row {number}: expected text in {column!r}, found none")
        prompts.append(row[column])
    return prompts
