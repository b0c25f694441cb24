"""Parts of a pipeline besides its network (text encoder, VAE, rewriter): from a name to its files, and a fingerprint.

A name is `mini` (shipped in model/pretrained), a folder that save_pretrained wrote, a folder of a whole diffusers pipeline (the
part is then the sub-folder of its kind), or a hub id of either. Weights are read from safetensors only.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from foundry.errors import UserError
from foundry.storage.model_files import hub_folder, hub_names, in_place_of_weights, weight_files

if TYPE_CHECKING:
    import torch

Kind = Literal["text_encoder", "vae", "rewriter"]
PUBLISHED = {120: "PixArt-alpha/PixArt-XL-2-1024-MS", 300: "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"}
"""Repositories with the text encoder and VAE of a published network, by its max_caption_tokens: alpha's or Sigma's."""
UNNAMED = ""
"""The name of a part that nobody has named; there is no default, since `mini` is only the small world's."""
PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained"
_MINI: dict[Kind, str] = {"text_encoder": "t5-mini", "vae": "vae-mini", "rewriter": "rewriter-mini"}
_HUB_FILES: dict[Kind, list[str]] = {
    "text_encoder": [
        "config.json",
        "model*.safetensors*",
        "*token*.json",
        "spiece.model",
        "vocab.json",
        "merges.txt",
        "chat_template*",
        "text_encoder/*",
        "tokenizer/*",
    ],
    "vae": ["config.json", "diffusion_pytorch_model.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"],
    "rewriter": ["*.json", "model*.safetensors*", "*.jinja", "*.model", "merges.txt"],
}
_VARIANTS = ["*.fp16*", "*.bf16*"]
"""Files of a repository that are not fetched: the same weights in lower precision."""
_VALUES_PER_TENSOR = 1024


@dataclass(frozen=True, kw_only=True)
class FrozenPart:
    """A part that can be loaded. `revision` is the commit of a hub model, "" for a folder."""

    name: str
    revision: str
    folder: Path
    tokenizer_folder: Path


def find_part(name: str, kind: Kind, *, revision: str | None = None) -> FrozenPart:
    """Finds the files of a part. Raises UserError if they are unavailable, or where no name is given."""
    if name == UNNAMED:
        raise UserError(f"no {kind} is named here: name the one that this network was trained with", setting=kind)
    root, commit = _root(name, kind, revision)
    inside = root / kind
    folder = root if (root / "config.json").is_file() else inside
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{root} holds no {kind}: expected config.json there or in {kind}/; give a folder that save_pretrained wrote"
        )
    if not weight_files(folder):
        names = [path.name for path in folder.iterdir()]
        if commit:  # what is no use was not fetched
            under = f"{kind}/" if folder == inside else ""
            names += [file.removeprefix(under) for file in hub_names(name, revision=commit) if file.startswith(under)]
        example = f"a model that has them, such as {PUBLISHED[120]}"
        raise UserError(
            in_place_of_weights(name if commit else folder, set(names), example=example)
            or f"{folder} holds no weights as safetensors; give {example}"
        )
    tokenizer_folder = root / "tokenizer" if (root / "tokenizer").is_dir() else folder
    return FrozenPart(name=name, revision=commit, folder=folder, tokenizer_folder=tokenizer_folder)


def stored_bytes(folder: Path) -> int:
    """Size of the weights' files of a folder."""
    return sum(path.stat().st_size for path in weight_files(folder))


def is_mini(name: str, kind: Kind) -> bool:
    """Whether a name means the shipped toy, by its name or by its folder."""
    folder = PRETRAINED / _MINI[kind]
    return name == "mini" or Path(name).expanduser().resolve() == folder


def fingerprint(tensors: Iterable[tuple[str, "torch.Tensor"]], *, also: str = "") -> str:
    """A hash of 16 hexadecimal digits over names, shapes and evenly spaced values, as bf16, of all tensors.

    It tells one training from another, not float32 from bf16 or one file from many, and takes a second for T5-XXL. `also` is
    hashed too. It guards against mistakes, not against forgery.
    """
    import torch

    digests = []  # one each, so that tensors may come in any order and one at a time
    for name, tensor in tensors:
        flat = tensor.detach().reshape(-1)
        values = flat[:: max(1, flat.numel() // _VALUES_PER_TENSOR)].to(torch.bfloat16).cpu()
        digest = hashlib.sha256(f"{name}\0{tuple(tensor.shape)}\0".encode())
        digest.update(values.view(torch.int16).numpy().tobytes())
        digests.append(digest.hexdigest())
    return hashlib.sha256("\0".join([also, *sorted(digests)]).encode()).hexdigest()[:16]


def stored_tensors(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, "torch.Tensor"]]:
    """The named tensors from a folder's safetensors, one at a time, as stored (before any quantisation on loading)."""
    from safetensors import safe_open

    wanted = set(names)
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for key in sorted(file.keys()):  # files of a whole model name its parts below `model.`
                name = key if key in wanted else key.removeprefix("model.")
                if name in wanted:
                    yield name, file.get_tensor(key)
                    wanted.remove(name)
    if wanted:
        raise UserError(f"{folder} holds no tensor {min(wanted)} ({len(wanted)} are missing): the download may be incomplete")


def _root(name: str, kind: Kind, revision: str | None) -> tuple[Path, str]:
    folder = PRETRAINED / _MINI[kind] if name == "mini" else Path(name).expanduser()
    if folder.is_dir():
        return folder, ""
    if name == "mini" or name.startswith((".", "/", "~")) or name.count("/") != 1:
        or_mini = ", or `mini` for emoji scenes" if (PRETRAINED / _MINI[kind]).is_dir() else ""
        raise UserError(f"there is no {kind} in {folder}: give a folder or a hub id{or_mini}")
    root = hub_folder(name, patterns=_HUB_FILES[kind], ignore=_VARIANTS, revision=revision)
    return root, root.name
