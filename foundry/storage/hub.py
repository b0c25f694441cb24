"""Repositories of the Hugging Face hub: their names, kinds and cards, and what the hub refuses in one line.

huggingface_hub asks it, by HF_ENDPOINT, HF_HOME and HF_TOKEN. See hub_transfers.py for pushing and pulling.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from foundry.errors import UserError, one_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RepositoryKind = Literal["dataset", "model"]
Access = Literal["read", "write"]
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_REASON_CHARS = 300
_TOKEN_ADVICE = "set HF_TOKEN to a token that may {access} there (https://huggingface.co/settings/tokens)"


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


def find_kind(name: str) -> RepositoryKind:
    """Whether a name is that of a data set or of a model. Raises UserError where it is neither, or both."""
    found: list[RepositoryKind] = []
    with hub_errors(Repository(name=name, kind="dataset"), access="read"):
        kinds: tuple[RepositoryKind, ...] = ("dataset", "model")
        found = [kind for kind in kinds if open_hub().repo_exists(name, repo_type=kind)]
    if not found:
        raise UserError(_nothing(name, access="read"), setting="repository")
    if len(found) > 1:
        raise UserError(f"{name} is both a data set and a model: say which of them, dataset or model", setting="kind")
    return found[0]


def card_facts(repository: Repository) -> dict[str, Any]:
    """The front matter of a repository's card; empty where there is no card, or no repository that the token can read."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    api = open_hub()
    ask = api.dataset_info if repository.kind == "dataset" else api.model_info
    with hub_errors(repository, access="write"):
        try:
            data = ask(repository.name).card_data
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return {}
    return {} if data is None else dict(vars(data))


def open_hub() -> "HfApi":
    """The client of the hub."""
    from huggingface_hub import HfApi

    return HfApi(library_name="t2i-foundry")


@contextmanager
def hub_errors(repository: Repository, *, access: Access, revision: str | None = None) -> Iterator[None]:
    """Turns what huggingface_hub raises into a UserError of one line. `access`: what the token has to allow."""
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
        raise UserError(_refusal(name, error, access=access)) from error


def hub_advice(location: str) -> str:
    """What to check where an hf:// path cannot be opened."""
    from huggingface_hub import get_token

    token = "that your token (HF_TOKEN) may read it" if get_token() else "set HF_TOKEN if it is private"
    dataset = "" if location.startswith("hf://datasets/") else "; a data set's path begins with hf://datasets/"
    return f"check the name USER/NAME of the repository and the path in it, and {token}{dataset}"


def _refusal(name: str, error: Exception, *, access: Access) -> str:
    """What the hub said, with advice by its status."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    causes = [error, *filter(None, (error.__cause__, error.__context__))]
    refused = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    status = refused.response.status_code if refused is not None and refused.response is not None else 0
    if status in (401, 403):
        assert refused is not None
        said = one_line(refused.server_message, limit=_REASON_CHARS).rstrip(".") if refused.server_message else ""
        return f"the hub refuses {name} ({': '.join(filter(None, (str(status), said)))}): {_TOKEN_ADVICE.format(access=access)}"
    if status == 404:
        return _nothing(name, access=access)
    reason = one_line(refused or error, limit=_REASON_CHARS)
    if status == 0 and any(isinstance(cause, HTTPError | ConnectionError) for cause in causes):
        return f"{name} is out of reach at {constants.ENDPOINT} ({type(error).__name__}: {reason}): run this again to resume"
    return f"{name}: {type(error).__name__}: {reason}: run this again to resume"


def _nothing(name: str, *, access: Access) -> str:
    """That a repository is not there, as far as this token can see."""
    from huggingface_hub import get_token

    whom = "that your token can read" if get_token() else "that can be read without a token"
    return f"the hub has no {name} {whom}: check the name, or {_TOKEN_ADVICE.format(access=access)}"
