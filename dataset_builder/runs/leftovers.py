"""Leftovers of killed work: attempts at units that another attempt committed, and files that were being written.

Readers never see them, since they list files from commit records; they only take space.
"""

import re
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from posixpath import basename, dirname
from typing import Any

from foundry.errors import UserError
from foundry.storage.folder import Folder
from foundry.units.commits import committed_units, named_files

_ATTEMPT = re.compile(r"(\d{8})-[0-9a-f]{8}\.(parquet|arrow)")
_UNFINISHED = re.compile(r"/\.[^/]{1,40}\.[0-9a-f]{16}(/|$)")
"""A hidden name (folder.py) in a path: of a file, or of a folder that holds it."""


@dataclass(frozen=True, kw_only=True)
class Leftovers:
    """Paths inside the filesystem with their size in bytes, and how many more are kept."""

    files: dict[str, int]
    num_young: int
    """Younger than allowed: a job may be writing them."""
    num_uncommitted: int
    """Attempts at units that nobody has committed: a worker that was only stopped may still do so."""


def find_leftovers(folder: Folder, *, older_than_s: float) -> Leftovers:
    """Finds the leftovers in a folder and in all below it. Raises UserError for one that is not there."""
    if not folder.exists():
        raise UserError(f"there is no folder {folder.url}: give a run, a data set or a feature store")
    listed: dict[str, dict[str, Any]] = folder.filesystem.find(folder.root, detail=True)  # before the records are read
    attempts, found, num_uncommitted = _attempts(list(listed)), [path for path in listed if _UNFINISHED.search(path)], 0
    named = {path for root in _with_neighbours(folder, attempts) for path in named_files(_at(folder, root))}
    for root, paths in attempts.items():
        committed = committed_units(_at(folder, root))
        for path in set(paths) - named:
            if int(basename(path)[:8]) in committed:
                found.append(path)
            else:
                num_uncommitted += 1
    now = time.time()
    old = {path: int(listed[path]["size"]) for path in found if now - _modified(listed[path], now) >= older_than_s}
    return Leftovers(files=old, num_young=len(found) - len(old), num_uncommitted=num_uncommitted)


def delete(folder: Folder, leftovers: Leftovers) -> None:
    """Deletes them, and the unfinished folders that are empty then."""
    for path in leftovers.files:
        folder.filesystem.rm_file(path)
    unfinished = {
        path[: found.end(1)].rstrip("/") for path in leftovers.files if (found := _UNFINISHED.search(path)) and found[1]
    }
    for path in unfinished:
        if folder.is_local and not folder.filesystem.find(path):
            folder.filesystem.rm(path, recursive=True)


def _attempts(paths: list[str]) -> dict[str, list[str]]:
    """Files that are named as attempts, by the folder whose commits would name them."""
    roots = {dirname(dirname(path)) for path in paths if basename(dirname(path)) == "commits" and path.endswith(".json")}
    found: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        if _ATTEMPT.fullmatch(basename(path)) and (root := dirname(dirname(path))) in roots:
            found[root].append(path)
    return found


def _with_neighbours(folder: Folder, roots: Iterable[str]) -> set[str]:
    """These folders and those beside them: the commits of one resolution's features name files of another's."""
    found = {path.rstrip("/") for root in roots for path in folder.filesystem.ls(dirname(root), detail=False)}
    return {*roots, *(root for root in found if folder.filesystem.isdir(f"{root}/commits"))}


def _at(folder: Folder, path: str) -> Folder:
    """The folder at a path inside the filesystem of another."""
    return Folder(path if folder.is_local else str(folder.filesystem.unstrip_protocol(path)))


def _modified(info: dict[str, Any], now: float) -> float:
    """Seconds since the epoch; `now`, where the store does not tell."""
    when = info.get("mtime") or info.get("LastModified") or info.get("last_modified") or info.get("created") or now
    return when.timestamp() if isinstance(when, datetime) else float(when)
