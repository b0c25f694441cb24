"""Folders on a local disk or on object storage, with the two writes that everything else is built on: whole or not at all,
and create-if-absent.

`Folder(url)` takes a local path or any fsspec URL (`s3://bucket/runs/a`, `memory://run`).
"""

import os
import posixpath
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from foundry.errors import UserError


class Folder:
    """A folder whose names are relative, `/`-separated paths. Cheap to pickle: workers open it again from its URL."""

    def __init__(self, url: str) -> None:
        self.url = str(url)

    @property
    def filesystem(self) -> Any:
        """The fsspec filesystem; fsspec caches the instance per process."""
        return _filesystem_and_path(self.url)[0]

    @property
    def root(self) -> str:
        """The folder's path inside its filesystem."""
        path: str = _filesystem_and_path(self.url)[1]
        return path.rstrip("/") or "/"

    @property
    def is_local(self) -> bool:
        """True on a local disk, where writes can be linked and replaced."""
        return isinstance(self.filesystem, LocalFileSystem)

    def path(self, name: str) -> str:
        """The path of `name` inside the filesystem; `../` leads out of the folder."""
        return posixpath.normpath(f"{self.root}/{name}")

    def exists(self, name: str = "") -> bool:
        """Whether there is such a file, or without a name the folder itself."""
        return bool(self.filesystem.exists(self.path(name) if name else self.root))

    def names(self, folder: str = "") -> list[str]:
        """The sorted names of the files directly in `folder`, but for hidden ones; empty where it does not exist."""
        path = self.path(folder) if folder else self.root
        try:
            names = _local_names(path) if self.is_local else self._remote_names(path)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if not name.startswith("."))  # hidden: half-written, see _write_temporary

    def read(self, name: str) -> bytes:
        """All bytes of a file. Raises FileNotFoundError."""
        data: bytes = self.filesystem.cat_file(self.path(name))
        return data

    def read_many(self, names: list[str]) -> dict[str, bytes]:
        """The bytes of many files, fetched concurrently on object storage."""
        if self.is_local:
            root = self.root  # not worked out again for each of thousands
            return {name: Path(f"{root}/{name}").read_bytes() for name in names}
        found = self.filesystem.cat([self.path(name) for name in names]) if names else {}
        return {name: found[self.path(name)] for name in names}

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file that must not exist yet; returns False, and changes nothing, where it does.

        Atomic: a reader sees all of the bytes or no file (a hard link on POSIX, If-None-Match on S3).
        """
        path = self.path(name)
        if not self.is_local:
            try:
                self.filesystem.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
            return True
        temporary = _write_temporary(path, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
        return True

    def write(self, name: str, data: bytes) -> None:
        """Writes a file atomically, replacing one that exists."""
        if self.is_local:
            path = self.path(name)
            os.replace(_write_temporary(path, data), path)
        else:
            self.filesystem.pipe_file(self.path(name), data)

    def _remote_names(self, path: str) -> list[str]:
        self.filesystem.invalidate_cache(path)
        entries = self.filesystem.ls(path, detail=True)
        return [entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file"]

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Opens a file for random access reading."""
        with self.filesystem.open(self.path(name), "rb") as file:
            yield file


@contextmanager
def usable(folder: Folder) -> Iterator[None]:
    """Turns a failure of the folder's store into a UserError in one line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_store_failure(error, folder.url):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        advice = "check that it exists, its permissions and credentials, or give another folder"
        raise UserError(f"cannot work in {folder.url} ({type(error).__name__}: {reason}): {advice}") from error


def is_store_failure(error: Exception, url: str) -> bool:
    """Whether a file system or an object store raised it, as far as that can be told.

    Each store has error classes of its own (aiohttp, botocore, gcsfs), without a common base; Python's other ones are bugs.
    """
    return isinstance(error, OSError) or (not is_local_path(url) and type(error).__module__ != "builtins")


def is_local_path(url: str) -> bool:
    """True for a path on a local disk (with or without `file://`), False for object storage."""
    return "://" not in url or url.startswith(("file://", "local://"))


def _filesystem_and_path(url: str) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        raise UserError(f"{url} cannot be opened: {error}") from None


def _local_names(path: str) -> list[str]:
    """Without the call to stat for each that fsspec makes."""
    with os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_file()]


def _write_temporary(path: str, data: bytes) -> str:
    """Writes and syncs a file beside `path` under a unique hidden name."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{os.path.dirname(path)}/.{os.path.basename(path)}.{secrets.token_hex(4)}"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return temporary


def absolute(path: str) -> str:
    """A local path as seen from any working folder; URLs stay as they are."""
    return str(Path(path.removeprefix("file://")).absolute()) if is_local_path(path) else path


def absolute_if_there(name: str | None) -> str | None:
    """The same of a name that is a local path here; hub ids and other names stay as they are."""
    return absolute(name) if name and Path(name).exists() else name
