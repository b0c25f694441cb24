"""Folders on a local disk or on object storage, with the two writes that everything else is built on: complete or not there,
and create-if-absent.

`Folder(url)` takes a local path or any fsspec URL (`s3://bucket/runs/a`, `memory://run`). `new_file` and `new_folder` are for
what is written by its path, which is local. What is not complete yet has a hidden name in the same folder.
"""

import os
import posixpath
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fsspec.implementations.local import LocalFileSystem

from foundry.errors import UserError, one_line
from foundry.storage.locations import (
    is_on_hub,
    is_store_failure,
    local_names,
    local_stamps,
    open_filesystem,
    remote_names,
    remote_stamps,
)


class Folder:
    """A folder whose names are relative, `/`-separated paths. Cheap to pickle: workers open it again from its URL."""

    def __init__(self, url: str) -> None:
        self.url = str(url)

    @property
    def filesystem(self) -> Any:
        """The fsspec filesystem; fsspec caches the instance per process."""
        return open_filesystem(self.url)[0]

    @property
    def root(self) -> str:
        """The folder's path inside its filesystem."""
        return open_filesystem(self.url)[1].rstrip("/") or "/"

    @property
    def is_local(self) -> bool:
        """True on a local disk, where writes can be linked and replaced."""
        return isinstance(self.filesystem, LocalFileSystem)

    def path(self, name: str) -> str:
        """The path of `name` inside the filesystem; `../` leads out of the folder."""
        return posixpath.normpath(f"{self.root}/{name}")

    def location(self, name: str = "") -> str:
        """The location (locations.py) of `name`, or without one of the folder: a local path, or a URL elsewhere."""
        path = self.path(name) if name else self.root
        return path if self.is_local else str(self.filesystem.unstrip_protocol(path))

    def exists(self, name: str = "") -> bool:
        """Whether there is such a file, or without a name the folder itself."""
        return bool(self.filesystem.exists(self.path(name) if name else self.root))

    def names(self, folder: str = "") -> list[str]:
        """The sorted names of the files directly in `folder`, but for hidden ones; empty if it does not exist."""
        path = self.path(folder) if folder else self.root
        if not self.is_local:
            self.filesystem.invalidate_cache(path)
        try:
            found = list(local_names(path) if self.is_local else remote_names(self.filesystem, path))
        except FileNotFoundError:
            return []
        return sorted(name for name, is_folder in found if not is_folder and not name.startswith("."))

    def stamps(self, folder: str) -> dict[str, str]:
        """The same names, each with its size and its time of change or ETag: a file that was written again has another stamp.

        "" where the store tells no time.
        """
        path = self.path(folder)
        if not self.is_local:
            self.filesystem.invalidate_cache(path)
        try:
            found = local_stamps(path) if self.is_local else remote_stamps(self.filesystem, path)
            return {name: stamp for name, stamp in sorted(found) if not name.startswith(".")}
        except FileNotFoundError:
            return {}

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
        self._check_writable()
        path = self.path(name)
        if not self.is_local:
            try:
                self.filesystem.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
            return True
        with _hidden_path(Path(path)) as partial:
            _write_synced(partial, data)
            try:
                os.link(partial, path)
            except FileExistsError:
                return False
        return True

    def write(self, name: str, data: bytes) -> None:
        """Writes a file atomically, replacing one that exists."""
        self._check_writable()
        if self.is_local:
            path = Path(self.path(name))
            with _hidden_path(path) as partial:
                _write_synced(partial, data)
                os.replace(partial, path)
        else:
            self.filesystem.pipe_file(self.path(name), data)

    def _check_writable(self) -> None:
        """Raises UserError for the hub: each file would be a commit, and none can be created only if it is not there."""
        if is_on_hub(self.url):
            raise UserError(
                f"{self.url}: expected a folder or an object store, found the Hugging Face hub, which takes whole folders: "
                "write to a folder, then push that: python -m publisher.push FOLDER USER/NAME"
            )

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Opens a file for random access reading."""
        with self.filesystem.open(self.path(name), "rb") as file:
            yield file


@contextmanager
def store_errors(folder: Folder) -> Iterator[None]:
    """Turns a failure of the folder's store into a UserError in one line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_store_failure(error, folder.url):
            raise
        reason = one_line(error)
        advice = "check that it exists, its permissions and credentials, or give another folder"
        raise UserError(f"cannot work in {folder.url} ({type(error).__name__}: {reason}): {advice}") from error


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Path to write a file to, which becomes `path` when the block ends well and vanishes when it does not."""
    with _hidden_path(path) as partial:
        yield partial
        partial.chmod(0o644)  # a library may have made it its owner's alone
        os.replace(partial, path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Folder to write to, which becomes `path` when the block ends well and vanishes when it does not.

    Where `path` is already a folder, what was written moves into it, sub-folders first: a file may tell that all is there.
    """
    with _hidden_path(path) as partial:
        partial.mkdir()
        yield partial
        partial.chmod(0o755)
        if path.exists():
            for part in sorted(partial.iterdir(), key=Path.is_file):
                os.replace(part, path / part.name)
        else:
            os.replace(partial, path)


@contextmanager
def _hidden_path(path: Path) -> Iterator[Path]:
    """A name in the folder of `path` that nobody else has; what is there when the block ends is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}")
    try:
        yield partial
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _write_synced(path: Path, data: bytes) -> None:
    """Writes a new file that is on the disk when this returns."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
