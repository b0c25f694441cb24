"""Locations: local paths and fsspec URLs under one set of functions to normalise, list, walk, describe and open.

A location is an absolute local path or a URL with a protocol (`s3://bucket/key`, `memory:///a`). Credentials come from the
environment or fsspec's own configuration, never from the location.
"""

import base64
import errno
import os
import posixpath
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote_to_bytes

import fsspec

from foundry.errors import SourceError, UserError, one_line
from foundry.extras import missing_library
from foundry.storage.file_kinds import (
    SIDECAR_SUFFIXES,
    PassedOver,
    holds_results,
    is_drive_folder,
    is_ignored,
    is_source,
    suffix_of,
)
from foundry.storage.hub import hub_advice

_NO_SUCH_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
_DATA = "data:"
_SHOWN_CHARS = 200


@dataclass(frozen=True, kw_only=True)
class Details:
    """Facts that a file system gives about a location without opening it. modified is ISO 8601 or an entity tag."""

    is_folder: bool
    num_bytes: int | None
    modified: str | None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """One listed folder: its location, its path relative to where the walk began ("" there), its file names in order."""

    uri: str
    relative: str
    files: list[str]


def is_url(location: str) -> bool:
    """Whether a location has a protocol; a local path has none."""
    return "://" in location


def is_on_hub(location: str) -> bool:
    """Whether a location is in a repository of the Hugging Face hub: `hf://datasets/USER/NAME/…`, `hf://USER/NAME/…`."""
    return location.startswith("hf://")


def advice_for(location: str, advice: str) -> str:
    """The advice where nothing is at a location; on the hub, what can be wrong there."""
    return hub_advice(location) if is_on_hub(location) else advice


def is_data_url(location: str) -> bool:
    """Whether a location is its own content: `data:image/png;base64,…`."""
    return location.startswith(_DATA)


def data_of(url: str) -> bytes:
    """The content of a data URL. Raises ValueError for one that is cut off or no base64. Source: RFC 2397."""
    kind, comma, content = url.removeprefix(_DATA).partition(",")
    if not comma:
        raise ValueError("a data URL has a comma before its content")
    decoded = unquote_to_bytes(content)
    if not kind.lower().endswith(";base64"):
        return decoded
    return base64.b64decode(decoded + b"=" * (-len(decoded) % 4), validate=True)  # many writers leave the padding out


def shown(text: str) -> str:
    """A location or a message of any length, short enough for a person to read."""
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}… ({len(text):,} characters)"


def is_utf8(name: str) -> bool:
    """Whether a name can be written as UTF-8; bytes of a file's name that are none are lone surrogates in Python."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_local_path(url: str) -> bool:
    """Whether a user's path or URL is on a local disk (with or without `file://`), not on object storage."""
    return not is_url(url) or url.startswith(("file://", "local://"))


def absolute(path: str) -> str:
    """A local path as seen from any working folder; URLs stay as they are."""
    return str(Path(path.removeprefix("file://")).absolute()) if is_local_path(path) else path


def absolute_if_there(name: str | None) -> str | None:
    """`absolute` of a name that is a local path here; hub ids and other names stay as they are."""
    return absolute(name) if name and Path(name).exists() else name


def normalise(location: str) -> str:
    """A local path becomes absolute (`~` and `file://` resolved, symbolic links kept), a URL takes its canonical form.

    Raises UserError for a name that is not UTF-8, and for a protocol that fsspec does not know or whose library is missing.
    """
    if not is_utf8(location):
        raise UserError(f"the name of {location!a} is not UTF-8; rename it")
    if location.startswith("file://"):
        location = location[len("file://") :]
    if not is_url(location):
        return os.path.abspath(os.path.expanduser(location))
    filesystem, path = open_filesystem(location)
    return cast(str, filesystem.unstrip_protocol(path))


def open_filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL (cached per process) and the path inside it. Raises UserError if there is none."""
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        cause = error.__cause__
        missing = missing_library(cause) if isinstance(cause, ModuleNotFoundError) else None
        advice = "install what it names or copy the files to a local folder"
        raise UserError(f"cannot open {url}: {missing or f'{one_line(error)}; {advice}'}") from error
    return filesystem, cast(str, path)


def join(folder: str, relative: str) -> str:
    """A location below a folder."""
    return f"{_with_slash(folder)}{relative}"


def parent(location: str) -> str:
    """The folder that a location lies in."""
    head = location.rsplit("/", 1)[0]
    return f"{head}/" if head.endswith((":/", "://")) or not head else head


def is_inside(location: str, folder: str) -> bool:
    """Whether a location lies below a folder, at any depth."""
    return location.startswith(_with_slash(folder))


def _with_slash(folder: str) -> str:
    return folder if folder.endswith("/") else f"{folder}/"


def relative_to(location: str, folder: str) -> str:
    """The path of a location below a folder; the location itself if it lies elsewhere."""
    return location.removeprefix(_with_slash(folder))


def locate(path: str, folder: str) -> str:
    """The location that a path or URL means when it is written in a file of that folder."""
    path = path.removeprefix("file://")
    if is_url(path) or is_data_url(path):
        return path
    if is_url(folder) and not path.startswith("/"):
        protocol, folder_path = folder.split("://", 1)
        return f"{protocol}://{posixpath.normpath(posixpath.join(folder_path, path))}"
    return os.path.normpath(os.path.join(folder, path))


def describe(location: str) -> Details:
    """Raises UserError in one line if nothing is there or it may not be looked at."""
    with read_errors(location, "check the path and its permissions"):
        if is_url(location):
            filesystem, path = open_filesystem(location)
            return _from_info(filesystem.info(path))
        status = os.stat(location)
    modified = datetime.fromtimestamp(status.st_mtime, UTC).isoformat()
    return Details(is_folder=stat.S_ISDIR(status.st_mode), num_bytes=status.st_size, modified=modified)


def leads_nowhere(location: str) -> bool:
    """Whether a local path is a symbolic link to itself or to what is not there."""
    if is_url(location) or not os.path.islink(location):
        return False
    try:
        os.stat(location)
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)
    return False


@contextmanager
def read_errors(location: str, advice: str) -> Iterator[None]:
    """Turns a failure to read a location into a SourceError that names it and ends in the advice.

    Bugs pass, as far as they can be told: a local file fails with OSError or, damaged, with ValueError or an error of Arrow;
    each remote store has its own classes without a common base.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        import pyarrow as pa

        if not is_url(location) and not isinstance(error, OSError | ValueError | pa.ArrowException):
            raise
        reason = _reason(error)
        raise SourceError(f"cannot read {location}: {reason}; {advice_for(location, advice)}", reason=reason) from error


def is_store_failure(error: Exception, url: str) -> bool:
    """Whether a file system or an object store raised it, as far as that can be told.

    Each store has its own error classes (aiohttp, botocore, gcsfs), without a common base; Python's other ones are bugs.
    """
    return isinstance(error, OSError) or (not is_local_path(url) and type(error).__module__ != "builtins")


def forget_listings(location: str) -> None:
    """Makes the next listing of a remote store a true one; fsspec keeps old ones for as long as the process lives."""
    if is_url(location):
        open_filesystem(location)[0].invalidate_cache()


def walk(
    folder: str, relative: str = "", *, passed_over: PassedOver | None = None, above: frozenset[str] = frozenset()
) -> Iterator[Listing]:
    """A folder and all below it: files of a folder first, then its subfolders, each sorted by name; ignored names left out,
    and so are the results of our own commands that lie below it.

    Holds the names of one folder (and of those above it) at a time. Symbolic links are followed, save into a folder that is
    being walked already (`above` holds those). `passed_over` counts the names left out.
    Raises UserError for a folder that may not be listed.
    """
    passed_over = PassedOver() if passed_over is None else passed_over
    true_path = folder if is_url(folder) else os.path.realpath(folder)
    if true_path in above:
        return
    in_folder = PassedOver()
    with read_errors(folder, "check its permissions"):
        files, subfolders = _list(folder, in_folder)
    if relative and holds_results(files, subfolders):
        passed_over.results += 1
        return
    passed_over.add(in_folder)
    yield Listing(uri=folder, relative=relative, files=files)
    inside = above | {true_path}
    for name in subfolders:
        yield from walk(join(folder, name), f"{relative}/{name}" if relative else name, passed_over=passed_over, above=inside)


def list_files(folder: str) -> list[str]:
    """Sorted names of the files in one folder, ignored ones left out; empty if it is not there, cannot be there (a name that no
    file system takes) or the store has no folders."""
    if folder.startswith(("http://", "https://")) or "\0" in folder:
        return []
    with read_errors(folder, "check its permissions"):
        try:
            return _list(folder, PassedOver())[0]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            if error.errno in _NO_SUCH_NAME:
                return []
            raise


def local_names(folder: str) -> Iterator[tuple[str, bool]]:
    """Names in a local folder, in no order, and whether each is a folder; without fsspec's call to stat for each."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry.name, _leads_to_folder(entry)


def _leads_to_folder(entry: "os.DirEntry[str]") -> bool:
    """False for a broken symbolic link (to itself, or where it may not be followed): reading it says why."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def remote_names(filesystem: Any, path: str) -> Iterator[tuple[str, bool]]:
    """The same of a folder in a filesystem of fsspec, which may keep old listings (`forget_listings`)."""
    for info in filesystem.ls(path, detail=True):
        name = info["name"].rstrip("/")
        if name != path.rstrip("/"):
            yield name.rsplit("/", 1)[-1], info["type"] == "directory"


def local_stamps(folder: str) -> Iterator[tuple[str, str]]:
    """Names of the files in a local folder, in no order, each with its size and time of change."""
    with os.scandir(folder) as entries:
        for entry in entries:
            status = entry.stat()
            if not stat.S_ISDIR(status.st_mode):
                yield entry.name, f"{status.st_size} {status.st_mtime_ns}"


def remote_stamps(filesystem: Any, path: str) -> Iterator[tuple[str, str]]:
    """The same of a folder in a filesystem of fsspec; "" where the store tells no time."""
    for info in filesystem.ls(path, detail=True):
        details = _from_info(info)
        if not details.is_folder and info["name"] != path:
            stamp = f"{details.num_bytes} {details.modified}" if details.modified else ""
            yield info["name"].rsplit("/", 1)[-1], stamp


def open_binary(location: str, *, sequential: bool = False) -> BinaryIO:
    """Opens for reading; unbuffered unless sequential, so that no more is fetched than asked for. Raises the store's errors."""
    if not is_url(location):
        return open(location, "rb", buffering=1 << 20 if sequential else 0)
    filesystem, path = open_filesystem(location)
    return cast(BinaryIO, filesystem.open(path, "rb", cache_type="readahead" if sequential else "none"))


def _list(folder: str, passed_over: PassedOver) -> tuple[list[str], list[str]]:
    """Sorted names of the files and of the subfolders."""
    found = []
    for name, is_folder in remote_names(*open_filesystem(folder)) if is_url(folder) else local_names(folder):
        if not name.isascii() and not is_utf8(name):
            passed_over.not_utf8 += 1
        elif not is_ignored(name, is_folder=is_folder):
            found.append((name, is_folder))
            if not is_folder and not is_source(name) and (suffix := suffix_of(name)) not in SIDECAR_SUFFIXES:
                passed_over.suffixes[suffix] += 1
        elif is_folder and is_drive_folder(name):
            passed_over.drive_folders += 1
        elif is_folder:
            passed_over.folders += 1
        elif is_source(name):
            passed_over.files += 1
    return sorted(name for name, is_folder in found if not is_folder), sorted(name for name, is_folder in found if is_folder)


def _from_info(info: dict[str, Any]) -> Details:
    modified = next(
        (info[name] for name in ("ETag", "mtime", "LastModified", "last_modified", "created", "blob_id") if info.get(name)),
        None,
    )
    text = modified.isoformat() if isinstance(modified, datetime) else None if modified is None else str(modified)
    return Details(is_folder=info["type"] == "directory", num_bytes=info.get("size"), modified=text)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file or folder"
    return (isinstance(error, OSError) and error.strerror) or one_line(error)
