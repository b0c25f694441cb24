"""Transfers to and from the Hugging Face hub: a folder is pushed, or a repository pulled; the same call again finishes either.

Of a folder one file, its record, is pushed last: a repository without it is not complete. A pulled folder notes in PULLED where
it is from, and which files came.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from foundry.errors import UserError
from foundry.reporting.lines import say
from foundry.reporting.progress import Bar
from foundry.storage.hub import Repository, hub_errors, open_hub
from foundry.storage.locations import forget_listings
from foundry.wording import counted

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi, RepoFile

PULLED = ".cache/huggingface/t2i-pull.json"
"""Record of a pulled folder: repository, kind and files."""
_OF_THE_HUB = (".gitattributes",)
_GROUP_FILES = 16
_GROUP_BYTES = 256 << 20
_MB = 1e6


def push_folder(folder: Path, repository: Repository, *, record: str, public: bool, replace: bool, message: str) -> str:
    """Pushes all files of a folder, the file `record` last; returns the address of the repository's page.

    A new repository is private until all is there; `public` then shows it to everybody. Files that it has already are not sent
    again, and where it has all of them nothing is committed. Raises UserError for a repository with other files, unless they
    are to be replaced; for one that everybody sees, without `public`; and for what the hub refuses.
    """
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    with hub_errors(repository, access="write"):
        api = open_hub()
        address = str(api.create_repo(repository.name, repo_type=repository.kind, private=True, exist_ok=True))
        is_private = bool(api.repo_info(repository.name, repo_type=repository.kind).private)
        if not is_private and not public:
            raise UserError(
                f"{repository.name} is public, so everybody would see these files: allow it, or give another repository",
                setting="public",
            )
        there = _files_there(api, repository)
        changed = [name for name in files if name not in there or not _is_same(folder / name, there[name])]
        stale = sorted(there.keys() - {*files, *_OF_THE_HUB})
        if record in there and record in changed:
            stale.insert(0, record)
        if stale and not replace:
            raise UserError(
                f"{repository.name} holds other files ({', '.join(stale[:3])}{' …' if len(stale) > 3 else ''}): give another "
                "repository, or replace them",
                setting="replace",
            )
        _commit(api, folder, repository, changed=changed, stale=stale, record=record, message=message)
        if public and is_private:
            api.update_repo_settings(repository.name, repo_type=repository.kind, visibility="public")
    forget_listings(repository.url)
    return address


def pull_folder(repository: Repository, out: Path, *, revision: str | None) -> None:
    """Fetches all files of a repository into a folder; those that are there already are not fetched again.

    Files of an earlier pull that the revision no longer has are deleted. Raises UserError for a file, for a folder that holds
    other files or those of another repository, and for what the hub refuses.
    """
    before = _pulled_before(repository, out)
    with hub_errors(repository, access="read", revision=revision):
        api = open_hub()
        ask = api.dataset_info if repository.kind == "dataset" else api.model_info
        info = ask(repository.name, revision=revision)
        names = sorted(file.rfilename for file in info.siblings or ())
        _note_pull(repository, out, {*before, *names})
        with Bar(f"pull {repository.name}", total=len(names), unit="file") as bar:
            api.snapshot_download(
                repository.name,
                repo_type=repository.kind,
                revision=info.sha,
                local_dir=out,
                tqdm_class=_feeding(bar),
            )
    _delete(out, before - set(names))
    _note_pull(repository, out, set(names))


def _files_there(api: "HfApi", repository: Repository) -> dict[str, "RepoFile"]:
    from huggingface_hub import RepoFile

    entries = api.list_repo_tree(repository.name, repo_type=repository.kind, recursive=True)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _is_same(path: Path, there: "RepoFile") -> bool:
    """Whether a file has the content of the hub's: git LFS names it by its SHA-256, git by a SHA-1 with the size before it."""
    size = path.stat().st_size
    if size != there.size:
        return False
    with path.open("rb") as file:
        if there.lfs is not None:
            return hashlib.file_digest(file, "sha256").hexdigest() == there.lfs.sha256
        return hashlib.sha1(f"blob {size}\0".encode() + file.read(), usedforsecurity=False).hexdigest() == there.blob_id


def _commit(
    api: "HfApi",
    folder: Path,
    repository: Repository,
    *,
    changed: Sequence[str],
    stale: Sequence[str],
    record: str,
    message: str,
) -> None:
    """Sends what changed and deletes what is stale; a record of other files goes before they do, the new one comes last."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    add = {name: CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in changed}
    last = [add.pop(record)] if record in add else []
    deletions = [CommitOperationDelete(path_in_repo=name) for name in stale]
    with Bar(f"push {repository.name}", total=len(changed), unit="file") as bar, _without_bars():
        sent = 0
        for group in _groups(list(add.values())):
            api.preupload_lfs_files(repository.name, additions=group, repo_type=repository.kind, free_memory=False)
            sent += sum(one.upload_info.size for one in group)
            bar.advance(len(group), megabytes=sent / _MB)
        commits: list[list[CommitOperationAdd | CommitOperationDelete]] = [[*deletions, *add.values()], [*last]]
        for operations in commits:
            if operations:
                api.create_commit(repository.name, operations=operations, commit_message=message, repo_type=repository.kind)
        bar.advance(len(last))


def _groups(additions: "Sequence[CommitOperationAdd]") -> "Iterator[list[CommitOperationAdd]]":
    """Files that are sent together, so that progress shows in between."""
    group: list[CommitOperationAdd] = []
    for addition in additions:
        if group and (len(group) == _GROUP_FILES or sum(one.upload_info.size for one in [*group, addition]) > _GROUP_BYTES):
            yield group
            group = []
        group.append(addition)
    if group:
        yield group


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keeps huggingface_hub's own bars away while ours is open."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    was_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not was_disabled:
            enable_progress_bars()


def _feeding(bar: Bar) -> type[Any]:
    """A class of bars for snapshot_download, which makes one for files and two for bytes; they show nothing and feed `bar`."""
    lock = threading.Lock()  # bytes are counted by the threads that fetch them
    most = [0.0]

    class Feeding:
        format_dict: ClassVar = {"rate": None}

        def __init__(self, *, total: float | None = None, unit: str = "it", initial: float = 0, **_: object) -> None:
            self.n, self.total = initial, total
            self._is_of_bytes = unit == "B"

        def update(self, n: float | None = 1) -> None:
            with lock:
                self.n += n or 0
                if self._is_of_bytes:
                    most[0] = max(most[0], self.n)
                    bar.advance(0, megabytes=most[0] / _MB)
                else:
                    bar.advance(int(n or 0))

        def _show(self, *_: object, **options: object) -> None:
            """Shows nothing."""

        refresh = close = set_description = set_description_str = set_postfix_str = _show

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    return Feeding


def _pulled_before(repository: Repository, out: Path) -> set[str]:
    """The files that an earlier pull of the repository brought. Raises UserError for any other folder that is not empty."""
    if file := next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None):
        raise UserError(f"expected a folder, found the file {file}: give another folder", setting="out")
    if not out.exists() or not any(out.iterdir()):
        return set()
    if not (out / PULLED).is_file():
        raise UserError(f"{out} holds other files: give another folder", setting="out")
    try:
        noted = json.loads((out / PULLED).read_text(encoding="utf-8"))
        there, files = Repository(name=noted["repository"], kind=noted["kind"]), set(noted["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{out / PULLED} is damaged ({error}): give another folder", setting="out") from error
    if there != repository:
        kind = "" if there.kind == repository.kind else f", a {there.kind}"
        raise UserError(f"{out} was pulled from {there.name}{kind}: give another folder", setting="out")
    return files


def _note_pull(repository: Repository, out: Path, files: set[str]) -> None:
    path = out / PULLED
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(
        json.dumps({"repository": repository.name, "kind": repository.kind, "files": sorted(files)}), encoding="utf-8"
    )
    new.replace(path)


def _delete(out: Path, names: set[str]) -> None:
    """Deletes files of an earlier pull, and folders that this leaves empty."""
    root = out.resolve()
    there = [out / name for name in sorted(names) if (out / name).resolve().is_relative_to(root) and (out / name).is_file()]
    for path in there:
        path.unlink()
        for folder in path.parents:
            if folder == out or any(folder.iterdir()):
                break
            folder.rmdir()
    if there:
        say(f"{out}: deleted {counted(len(there), 'file')} of an earlier pull that the repository no longer has")
