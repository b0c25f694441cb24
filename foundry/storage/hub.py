"""Repositories of the Hugging Face hub: a folder is pushed into one, or pulled from one; the same call again finishes either.

huggingface_hub does the transfer, by HF_ENDPOINT, HF_HOME and HF_TOKEN. Of a folder one file, its record, is pushed last: a
repository without it is not complete.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from foundry.errors import UserError, one_line
from foundry.reporting.lines import OUTPUT
from foundry.storage.locations import forget_listings

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RepositoryKind = Literal["dataset", "model"]
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_OF_THE_HUB = (".gitattributes",)
_REASON_CHARS = 300
_TOKEN_ADVICE = "set HF_TOKEN to a token that may write there (https://huggingface.co/settings/tokens)"


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository of the hub."""

    name: str
    """USER/NAME or ORGANISATION/NAME."""
    kind: RepositoryKind

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UserError(f"expected a repository USER/NAME, found {self.name}", setting="repository")

    @property
    def url(self) -> str:
        """Its URL for fsspec."""
        return f"hf://{'datasets/' if self.kind == 'dataset' else ''}{self.name}"


def repository_at(url: str) -> Repository:
    """The repository of an hf:// URL. Raises UserError for a folder or a revision of one."""
    path = url.removeprefix("hf://").rstrip("/")
    kind: RepositoryKind = "dataset" if path.startswith("datasets/") else "model"
    return Repository(name=path.removeprefix("datasets/"), kind=kind)


def push_folder(folder: Path, repository: Repository, *, record: str, public: bool, replace: bool, message: str) -> str:
    """Pushes all files of a folder, the file `record` last; returns the address of the repository's page.

    A new repository is private until all is there; `public` then shows it to everybody. Files that it has already are not sent
    again. Raises UserError for a repository with other files, unless they are to be replaced; for one that everybody sees,
    without `public`; and for what the hub refuses.
    """
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    with hub_errors(repository):
        api = open_hub()
        address = str(api.create_repo(repository.name, repo_type=repository.kind, private=True, exist_ok=True))
        is_private = bool(api.repo_info(repository.name, repo_type=repository.kind).private)
        if not is_private and not public:
            raise UserError(f"{repository.name} is public: say so, or give another repository", setting="public")
        stale = _stale(api, repository, folder, files, record=record)
        if stale and not replace:
            raise UserError(
                f"{repository.name} holds other files ({', '.join(stale[:3])}{' …' if len(stale) > 3 else ''}): give another "
                "repository, or replace them",
                setting="replace",
            )
        upload = partial(
            api.upload_folder,
            repo_id=repository.name,
            repo_type=repository.kind,
            folder_path=folder,
            commit_message=message,
        )
        upload(ignore_patterns=[record], delete_patterns=stale or None)  # a record of other files goes before they do
        upload(allow_patterns=[record])
        if public and is_private:
            api.update_repo_settings(repository.name, repo_type=repository.kind, visibility="public")
    forget_listings(repository.url)
    return address


def pull_folder(repository: Repository, out: Path, *, revision: str | None) -> None:
    """Fetches all files of a repository into a folder; those that are there already are not fetched again.

    Raises UserError for a folder that holds other files, and for what the hub refuses.
    """
    mark = out / ".cache" / "huggingface"
    if out.exists() and any(out.iterdir()) and not mark.is_dir():
        raise UserError(f"{out} holds other files: give another folder", setting="out")
    with hub_errors(repository, revision=revision):
        open_hub().snapshot_download(repository.name, repo_type=repository.kind, revision=revision, local_dir=out)


def find_kind(name: str) -> RepositoryKind:
    """Whether a name is that of a data set or of a model. Raises UserError where it is neither, or both."""
    found: list[RepositoryKind] = []
    with hub_errors(Repository(name=name, kind="dataset")):
        kinds: tuple[RepositoryKind, ...] = ("dataset", "model")
        found = [kind for kind in kinds if open_hub().repo_exists(name, repo_type=kind)]
    if len(found) != 1:
        what = "both a data set and a model" if found else "nothing that this token can read (HF_TOKEN), or nothing at all"
        raise UserError(f"{name} is {what}: say which it is, dataset or model", setting="kind")
    return found[0]


def open_hub() -> "HfApi":
    """The client of the hub, with progress bars on a terminal alone."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if OUTPUT.format != "auto" or not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi(library_name="t2i-foundry")


@contextmanager
def hub_errors(repository: Repository, *, revision: str | None = None) -> Iterator[None]:
    """Turns what huggingface_hub raises into a UserError of one line."""
    from huggingface_hub import constants, errors

    name = repository.name
    try:
        yield
    except UserError:
        raise
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        if constants.is_offline_mode():
            raise UserError(f"{name} is out of reach, since HF_HUB_OFFLINE is set: run this without it") from error
        raise UserError(f"{name} is out of reach at {constants.ENDPOINT}: run this again once the hub answers") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{name} has no revision {revision}", setting="revision") from error
    except (errors.HfHubHTTPError, errors.HTTPError, OSError, RuntimeError, ValueError) as error:  # type: ignore[attr-defined]
        raise UserError(_refusal(name, error)) from error


def _refusal(name: str, error: Exception) -> str:
    """What the hub said, with advice by its status."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    causes = [error, *filter(None, (error.__cause__, error.__context__))]
    refused = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    status = refused.response.status_code if refused is not None and refused.response is not None else 0
    if status in (401, 403):
        return f"the hub refuses {name} ({status}): {_TOKEN_ADVICE}"
    if status == 404:
        return f"the hub has no {name}, or HF_TOKEN does not open it: check the name, or {_TOKEN_ADVICE}"
    reason = one_line(refused or error, limit=_REASON_CHARS)
    if status == 0 and any(isinstance(cause, HTTPError | ConnectionError) for cause in causes):
        return f"{name} is out of reach at {constants.ENDPOINT} ({type(error).__name__}: {reason}): run this again to resume"
    return f"{name}: {type(error).__name__}: {reason}: run this again to resume"


def _stale(api: "HfApi", repository: Repository, folder: Path, files: list[str], *, record: str) -> list[str]:
    """The repository's files that this folder has not, and its record where it is another one."""
    from huggingface_hub import RepoFile

    there = {
        entry.path
        for entry in api.list_repo_tree(repository.name, repo_type=repository.kind, recursive=True)
        if isinstance(entry, RepoFile)
    }
    stale = sorted(there - {*files, *_OF_THE_HUB})
    if record in there:
        path = api.hf_hub_download(repository.name, record, repo_type=repository.kind)
        if Path(path).read_bytes() == (folder / record).read_bytes():
            return stale
        return [record, *stale]
    return stale
