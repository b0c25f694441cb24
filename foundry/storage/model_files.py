"""Model files: fetched from the hub, identified by a fingerprint where no hub gives them a revision, loaded if complete.

huggingface_hub by itself asks six times for what is not in its cache: 24 s and a warning each time, where no hub is in reach.
Its HTTPError is that of its HTTP library, which changes its name between versions.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.errors import NotOnHub, UserError, one_line

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_BUSY = (408, 429)  # and whatever is 500 or more: the hub itself is unwell, and the cache may help
_WHOLE_BYTES = 1 << 30
"""Up to this size together, files are hashed whole."""
_BLOCKS = 256
_BLOCK_BYTES = 256 << 10
_SUFFIXES = (".json", ".safetensors", ".jinja", ".model")
_MOST_NAMED = 4
_PICKLED = ("pytorch_model", "diffusion_pytorch_model", "model", "tf_model", "flax_model", "consolidated")
_CONVERSIONS = (
    "a repository of the same model in transformers' format, such as llava-hf/llava-1.5-7b-hf, or save it as safetensors"
)
_OUT_OF_REACH = "the hub is out of reach, and its cache on this machine does not have it"


def unavailable(name: str, reason: str, *, advice: str = "fetch it first, or give a folder", setting: str = "") -> NotOnHub:
    """The error for a model that is unavailable, whoever wanted to fetch it."""
    return NotOnHub(f"{name} is unavailable ({reason}): {advice}", reason=reason, setting=setting)


def hub_file(name: str, file: str, *, revision: str | None = None) -> Path:
    """Path of a repository's file in the cache: downloaded if the hub answers, otherwise the earlier download.

    The name of its folder is the commit. Raises NotOnHub.
    """
    from huggingface_hub import hf_hub_download

    answers = _answers(name, file, revision)
    with _refusals(name, file=file, revision=revision):
        return Path(hf_hub_download(name, file, revision=revision, local_files_only=not answers))


def hub_folder(name: str, *, patterns: list[str], ignore: list[str], revision: str | None = None) -> Path:
    """Folder in the cache with a repository's files that match `patterns` and none of `ignore`; as hub_file does.

    snapshot_download itself asks once, and takes what is in the cache where the hub does not answer.
    """
    from huggingface_hub import snapshot_download

    with _refusals(name, file="such file", revision=revision):
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=ignore))


def hub_parameters(name: str, *, revision: str | None = None) -> int:
    """The number of parameters in a repository's safetensors, read from their headers; 0 if that is unknown."""
    from huggingface_hub import get_safetensors_metadata
    from huggingface_hub.errors import HTTPError, NotASafetensorsRepoError, SafetensorsParsingError  # type: ignore[attr-defined]

    try:
        return sum(get_safetensors_metadata(name, revision=revision).parameter_count.values())
    except (HTTPError, NotASafetensorsRepoError, OSError, SafetensorsParsingError):
        return 0


def hub_names(name: str, *, revision: str | None = None) -> list[str]:
    """The names of a repository's files, with their folders; none if the hub does not tell."""
    from huggingface_hub import list_repo_files
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    try:
        return list(list_repo_files(name, revision=revision))
    except (HTTPError, HFValidationError, OSError):
        return []


def weight_files(folder: Path) -> list[Path]:
    """A folder's safetensors, by name, without variants such as model.fp16.safetensors: the libraries do not read these."""
    return sorted(path for path in folder.glob("*.safetensors") if "." not in path.stem)


def in_place_of_weights(where: str | Path, names: Iterable[str], *, example: str = _CONVERSIONS) -> str:
    """The error for files of these names without safetensors that the libraries read; "" if there is nothing to say.

    `example` is what has safetensors, in place of a folder or repository that has pickled files alone.
    """
    names = sorted(names)
    variants = [name for name in names if name.endswith(".safetensors") and "." in name.removesuffix(".safetensors")]
    if any(name.endswith(".safetensors") and name not in variants for name in names):
        return ""
    if variants:
        whole = f"{variants[0].partition('.')[0]}.safetensors"
        rename = f", {whole}, or rename {variants[0]} to that to take it as it is" if len(variants) == 1 else ""
        return f"{where} only holds its weights as a variant ({_first(variants)}): fetch the full weights{rename}"
    if pickled := [
        name for name in names if name.startswith(_PICKLED) and name.endswith((".bin", ".pt", ".pth", ".h5", ".msgpack"))
    ]:
        return f"{where} holds its weights as {_first(pickled)}, and only safetensors are read: give {example}"
    return ""


def folder_fingerprint(folder: Path) -> str:
    """`files_fingerprint` of what a model folder holds: configurations, weights, templates and tokenizers."""
    return files_fingerprint(file for file in folder.iterdir() if file.suffix in _SUFFIXES)


def files_fingerprint(paths: Iterable[Path]) -> str:
    """16 hex digits over names, sizes and contents, by name; above 1 GiB together, over 256 blocks spread over each file.

    A file of 5 GB is then looked at every 20 MB, which meets each large matrix of a model, in a second for 14 GB.
    """
    digest = hashlib.sha256()
    files = [(path, path.stat().st_size) for path in sorted(paths)]
    is_whole = sum(size for _, size in files) <= _WHOLE_BYTES
    for path, size in files:
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for offset, length in _blocks(size, is_whole=is_whole):
                file.seek(offset)
                digest.update(file.read(length))
    return digest.hexdigest()[:16]


def load_network(load: Callable[..., Any], path: str | Path, *, what: str, **options: object) -> Any:
    """Network that `load`, a from_pretrained of transformers or diffusers, makes of safetensors. `what`: its kind, for errors.

    Raises UserError if it cannot be read, and where tensors are missing: the libraries fill those with random numbers. Tied
    weights, and buffers that are computed, are not missing.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        network, found = load(path, use_safetensors=True, output_loading_info=True, **options)
    except (
        OSError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        ImportError,
        SafetensorError,
        StrictDataclassError,
    ) as error:
        if instead := in_place_of_weights(path, _names_at(path, options.get("revision"))):
            raise UserError(instead) from error
        reason = f"{type(error).__name__}: {one_line(error, limit=300)}"
        raise UserError(f"{path} cannot be read as {what} ({reason}): fetch it again, or give another model") from error
    check_complete(path, found["missing_keys"], what=what)
    return network


def check_complete(path: str | Path, missing: Iterable[str], *, what: str) -> None:
    """Raises UserError, with the names of the first ones, where tensors of a model are missing."""
    if names := sorted(missing):
        raise UserError(
            f"{path} cannot be read as {what}: its weights lack {_first(names)}: it is another kind of model, or an incomplete "
            "download; fetch it again"
        )


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(names[:_MOST_NAMED])}{more}"


def _names_at(path: str | Path, revision: object) -> list[str]:
    """The names of the files in a folder, or in the repository of that name."""
    if Path(path).is_dir():
        return [file.name for file in Path(path).iterdir()]
    return hub_names(str(path), revision=None if revision is None else str(revision))


def _answers(name: str, file: str, revision: str | None) -> bool:
    """Whether the hub has the file; False if it cannot be asked. Raises NotOnHub if it says no."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    with _refusals(name, file=file, revision=revision):
        try:
            get_hf_file_metadata(hf_hub_url(name, file, revision=revision))
        except (HTTPError, OSError) as error:
            if isinstance(error, HfHubHTTPError) and not _is_unwell(error):
                raise
            return False
    return True


def _is_unwell(error: "HfHubHTTPError") -> bool:
    """Whether the hub itself is at fault, so that the cache may help."""
    return error.response.status_code >= 500 or error.response.status_code in _BUSY


@contextmanager
def _refusals(name: str, *, file: str, revision: str | None) -> Iterator[None]:
    """Turns what huggingface_hub raises into NotOnHub."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]

    try:
        yield
    except HFValidationError:
        raise unavailable(name, "that is neither a folder nor a hub id") from None
    except LocalEntryNotFoundError:
        raise unavailable(name, _OUT_OF_REACH) from None
    except HfHubHTTPError as error:
        reason = _OUT_OF_REACH if _is_unwell(error) else _refusal(error, file=file, revision=revision)
        raise unavailable(name, reason) from None
    except (HTTPError, OSError) as error:
        raise unavailable(name, one_line(error)) from None


def _refusal(error: Exception, *, file: str, revision: str | None) -> str:
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    reasons = {
        GatedRepoError: "its licence has to be accepted on the hub first, and HF_TOKEN set",
        RepositoryNotFoundError: "the hub has nothing by that name, or HF_TOKEN does not open it",
        RevisionNotFoundError: f"it has no revision {revision}",
        EntryNotFoundError: f"it has no {file}",
    }
    return next((reason for kind, reason in reasons.items() if isinstance(error, kind)), one_line(error))


def _blocks(size: int, *, is_whole: bool) -> Iterator[tuple[int, int]]:
    """Offsets and lengths in bytes of what is hashed: all of a file in pieces, or blocks from its first byte to its last."""
    if is_whole or size <= _BLOCKS * _BLOCK_BYTES:
        yield from ((offset, _BLOCK_BYTES) for offset in range(0, size, _BLOCK_BYTES))
    else:
        yield from ((block * (size - _BLOCK_BYTES) // (_BLOCKS - 1), _BLOCK_BYTES) for block in range(_BLOCKS))
