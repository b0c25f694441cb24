"""File of an adapter: safetensors under our layers' names, with base, rank, alpha and trigger word in its header.

blocks.0.attn.qkv.lora_A.weight (r, I)    .lora_B.weight (O, r)    .alpha ()    .lora_magnitude_vector (O,), of a DoRA
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from foundry.errors import UserError
from foundry.storage.folder import new_file
from model.dit_config import FewSteps
from model.lora.adapter import Adapter, LayerAdapter

VERSION = "1"
_KIND = "t2i-foundry lora"
_DOWN, _UP, _ALPHA, _MAGNITUDE = "lora_A.weight", "lora_B.weight", "alpha", "lora_magnitude_vector"
_FEW_STEPS = "few_steps"
_PARTS = (_DOWN, _UP, _ALPHA, _MAGNITUDE)


def write_adapter(path: Path, adapter: Adapter) -> None:
    """Writes the file, whole or not at all."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, layer in adapter.layers.items():
        tensors |= {f"{name}.{part}": tensor.detach().contiguous().cpu() for part, tensor in layer.tensors()}
        tensors[f"{name}.{_ALPHA}"] = torch.tensor(layer.alpha, dtype=torch.float64)
    with new_file(path) as partial:
        save_file(tensors, partial, metadata=_header(adapter))


def is_adapter_file(path: Path) -> bool:
    """Whether a file is an adapter that `write_adapter` wrote."""
    try:
        return path.is_file() and read_header(path).get("kind") == _KIND
    except UserError:
        return False


def read_header(path: Path) -> Mapping[str, str]:
    """The texts in the header of a safetensors file. Raises UserError if it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is missing, truncated or not safetensors: {error}") from error


def read_adapter(path: Path) -> Adapter:
    """Reads the file. Raises UserError for one that is cut off, of another kind, or not complete."""
    from safetensors.torch import load_file

    header = read_header(path)
    if (header.get("kind"), header.get("version")) != (_KIND, VERSION):
        found = f"{header.get('kind', 'none')}, version {header.get('version', 'none')}"
        raise UserError(f"{path}: expected a header of kind {_KIND}, version {VERSION}, found {found}")
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(path).items():
        part = next((part for part in _PARTS if key.endswith(f".{part}")), None)
        if part is None:
            raise UserError(f"{path}: expected the tensors of an adapter, found {key}")
        parts.setdefault(key.removesuffix(f".{part}"), {})[part] = tensor
    if not parts:
        raise UserError(f"{path} holds no tensors: write it again")
    return Adapter(
        layers={name: _layer(name, found, path) for name, found in sorted(parts.items())},
        rslora=header.get("rslora") == "true",
        base=header.get("base", ""),
        base_fingerprint=header.get("base_fingerprint", ""),
        trigger_word=header.get("trigger_word", ""),
        few_steps=_few_steps(header, path),
    )


def _few_steps(header: Mapping[str, str], path: Path) -> FewSteps | None:
    if _FEW_STEPS not in header:
        return None
    try:
        return FewSteps(**json.loads(header[_FEW_STEPS]))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {_FEW_STEPS} in its header: {error}") from error


def _layer(name: str, found: Mapping[str, Tensor], path: Path) -> LayerAdapter:
    if missing := [part for part in (_DOWN, _UP, _ALPHA) if part not in found]:
        raise UserError(f"{path} lacks {name}.{missing[0]}: write it again")
    down, up, magnitude = found[_DOWN], found[_UP], found.get(_MAGNITUDE)
    if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1] or (magnitude is not None and len(magnitude) != len(up)):
        raise UserError(f"{path}: the tensors of {name} do not fit together: {list(down.shape)} and {list(up.shape)}")
    return LayerAdapter(down=down, up=up, alpha=float(found[_ALPHA]), magnitude=magnitude)


def _header(adapter: Adapter) -> dict[str, str]:
    alphas = {layer.alpha for layer in adapter.layers.values()}
    few_steps = {} if adapter.few_steps is None else {_FEW_STEPS: json.dumps(asdict(adapter.few_steps))}
    return {
        "format": "pt",
        "kind": _KIND,
        "version": VERSION,
        "base": adapter.base,
        "base_fingerprint": adapter.base_fingerprint,
        "rank": str(adapter.rank),
        "alpha": f"{alphas.pop():g}" if len(alphas) == 1 else "see the tensors",
        "rslora": str(adapter.rslora).lower(),
        "dora": str(adapter.dora).lower(),
        "trigger_word": adapter.trigger_word,
        **few_steps,
    }
