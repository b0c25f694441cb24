"""Adapters under diffusers' names: a folder of peft, in and out, and files of diffusers, in.

    from peft import PeftModel
    pipeline.transformer = PeftModel.from_pretrained(pipeline.transformer, FOLDER)

diffusers' PixArt pipelines have no load_lora_weights; this is how an adapter gets into their PixArtTransformer2DModel. Where we
have one fused layer, it has two or three: on the way out they share `down` and each gets its rows of `up`, on the way in
ranks add up; no value changes.
Source: peft 0.21 (adapter_config.json, adapter_model.safetensors), diffusers 0.42 (lora_adapter_metadata).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foundry.errors import UserError
from foundry.storage.folder import new_folder
from model.dit_config import DiTConfig
from model.formats.json_files import read_json
from model.formats.state_dicts import diffusers_names
from model.lora.adapter import Adapter, LayerAdapter
from model.lora.file import read_header

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
_PREFIXES = ("base_model.model.transformer.", "base_model.model.", "transformer.", "")
_DOWN, _UP, _ALPHA, _MAGNITUDE = "lora_A.weight", "lora_B.weight", "alpha", "lora_magnitude_vector"
_ENDS = {
    ".lora_A.weight": _DOWN,
    ".lora_A.default.weight": _DOWN,
    ".lora_B.weight": _UP,
    ".lora_B.default.weight": _UP,
    ".lora_magnitude_vector": _MAGNITUDE,
    ".lora_magnitude_vector.weight": _MAGNITUDE,
    ".lora_magnitude_vector.default.weight": _MAGNITUDE,
    ".alpha": _ALPHA,
}
_UNSUPPORTED = {
    "bias": ("none",),
    "lora_bias": (False,),
    "modules_to_save": (None, []),
    "peft_type": ("LORA",),
    "fan_in_fan_out": (False,),
    "use_qalora": (False,),
    "use_bdlora": (None, False),
    "alora_invocation_tokens": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
}
"""Settings of peft that change more than our adapters hold, with the values that do not."""
_METADATA = "lora_adapter_metadata"


class _Stated(NamedTuple):
    """Settings that a file states besides its tensors."""

    alpha: float | None
    alphas: Mapping[str, float]
    """Alphas by pattern of the layer's name."""
    rslora: bool
    base: str = ""
    trigger_word: str = ""


def is_peft_folder(path: Path) -> bool:
    """Whether a folder of peft is there."""
    return (path / CONFIG).is_file()


def write_peft_folder(folder: Path, adapter: Adapter, config: DiTConfig) -> None:
    """Writes the folder, whole or not at all. Raises UserError for a network or a layer that diffusers has not."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    names = diffusers_names(config)
    layers: dict[str, LayerAdapter] = {}
    for ours, layer in adapter.layers.items():
        if f"{ours}.weight" not in names or names[f"{ours}.weight"].copies:
            raise UserError(f"diffusers' network has no layer {ours}: train without it as a target", setting="target")
        theirs = names[f"{ours}.weight"].theirs
        ups = layer.up.chunk(len(theirs))
        magnitudes = [None] * len(theirs) if layer.magnitude is None else layer.magnitude.chunk(len(theirs))
        for name, up, magnitude in zip(theirs, ups, magnitudes, strict=True):
            own = LayerAdapter(down=layer.down, up=up, alpha=layer.alpha, magnitude=magnitude)
            layers[name.removesuffix(".weight")] = own
    first = next(iter(layers.values()))
    settings = LoraConfig(
        r=first.rank,
        lora_alpha=first.alpha,  # peft divides it, and takes any number
        target_modules=sorted(layers),
        rank_pattern={name: layer.rank for name, layer in layers.items() if layer.rank != first.rank},
        alpha_pattern={name: layer.alpha for name, layer in layers.items() if layer.alpha != first.alpha},
        use_dora=adapter.dora,
        use_rslora=adapter.rslora,
        base_model_name_or_path=adapter.base or None,
        inference_mode=True,
    )
    tensors = {
        f"base_model.model.{name}.{part}": tensor.detach().clone(memory_format=torch.contiguous_format).cpu()
        for name, layer in layers.items()
        for part, tensor in layer.tensors()
    }
    with new_folder(folder) as partial:
        save_file(tensors, partial / TENSORS, metadata={"format": "pt", "trigger_word": adapter.trigger_word})
        settings.save_pretrained(str(partial))


def read_foreign(path: Path, config: DiTConfig) -> Adapter:
    """An adapter of a network of this configuration, from a folder of peft or a file of diffusers, under our names.

    Raises UserError, by name, for what is missing, of another kind, or no part of that network.
    """
    file = path / TENSORS if path.is_dir() else path
    header, tensors = read_header(file), _read(file)
    found = _layers(tensors, file)
    settings = _peft_settings(path / CONFIG, header) if path.is_dir() else _file_settings(header, file)
    theirs = {name: _layer(name, parts, settings, file) for name, parts in found.items()}
    try:
        names = diffusers_names(config)
    except UserError as error:
        raise UserError(f"{file} has diffusers' names, and {error}") from error
    layers: dict[str, LayerAdapter] = {}
    for ours, named in names.items():
        wanted = [name.removesuffix(".weight") for name in named.theirs]
        if not ours.endswith(".weight") or not any(name in theirs for name in wanted):
            continue
        parts = [theirs.pop(name, None) for name in wanted]
        layers[ours.removesuffix(".weight")] = _fused(parts, rslora=settings.rslora, name=wanted[0], file=file)
    if theirs:
        raise UserError(f"{file} adapts {sorted(theirs)[0]}, and the network has no such layer", setting="lora")
    return Adapter(layers=layers, rslora=settings.rslora, base=settings.base, trigger_word=settings.trigger_word)


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if any(path.with_name(name).is_file() for name in ("adapter_model.bin",)) and not path.is_file():
        raise UserError(f"{path.parent} holds a pickled adapter, which is not read: save it as safetensors")
    return load_file(path)


def _layers(tensors: Mapping[str, Tensor], file: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors by their layer's name in PixArtTransformer2DModel."""
    if kohya := next((key for key in tensors if key.startswith("lora_") or ".lora_down." in key), ""):
        raise UserError(
            f"{file} has kohya's names ({kohya}), which nobody has documented for PixArt: expected diffusers' or peft's, as "
            "transformer_blocks.0.attn1.to_q.lora_A.weight"
        )
    if text := next((key for key in tensors if key.startswith(("text_encoder.", "text_encoder_2."))), ""):
        raise UserError(f"{file} adapts the text encoder too ({text}), which is frozen here: expected the transformer alone")
    prefix = next(prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in tensors))
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        end = max((end for end in _ENDS if key.endswith(end)), key=len, default="")
        if not end:
            raise UserError(f"{file} holds {key}: expected lora_A.weight, lora_B.weight, alpha or lora_magnitude_vector")
        found.setdefault(key.removeprefix(prefix).removesuffix(end), {})[_ENDS[end]] = tensor
    if not found:
        raise UserError(f"{file} holds no tensors")
    return found


def _layer(name: str, parts: Mapping[str, Tensor], settings: _Stated, file: Path) -> LayerAdapter:
    if missing := [part for part in (_DOWN, _UP) if part not in parts]:
        raise UserError(f"{file} lacks {name}.{missing[0]}")
    down, up = parts[_DOWN], parts[_UP]
    if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1]:
        raise UserError(f"{file}: {name}: expected (r, inputs) and (outputs, r), found {list(down.shape)}, {list(up.shape)}")
    alpha = float(parts[_ALPHA]) if _ALPHA in parts else _alpha(name, settings, default=len(down))
    return LayerAdapter(down=down, up=up, alpha=alpha, magnitude=parts.get(_MAGNITUDE))


def _alpha(name: str, settings: _Stated, *, default: float) -> float:
    """Alpha, looked up as peft does."""
    if settings.alphas:
        from peft.utils.other import get_pattern_key

        pattern = get_pattern_key(list(settings.alphas), name)
        if pattern in settings.alphas:
            return settings.alphas[pattern]
    return default if settings.alpha is None else settings.alpha


def _fused(parts: Sequence[LayerAdapter | None], *, rslora: bool, name: str, file: Path) -> LayerAdapter:
    """One layer of those along its rows; missing ones are not changed."""
    there = [part for part in parts if part is not None]
    first = there[0]
    if len(parts) == 1:
        return first
    magnitudes = [part.magnitude for part in there if part.magnitude is not None]
    if magnitudes and len(magnitudes) != len(parts):
        raise UserError(f"{file} is a DoRA of a part of one fused layer (as {name}): expected all of its parts, or none")
    magnitude = torch.cat(magnitudes) if magnitudes else None
    nothing = torch.zeros_like(first.up)
    if all(torch.equal(part.down, first.down) and part.alpha == first.alpha for part in there):
        up = torch.cat([nothing if part is None else part.up for part in parts])
        return LayerAdapter(down=first.down, up=up, alpha=first.alpha, magnitude=magnitude)

    def root(rank: int) -> float:
        return rank**0.5 if rslora else rank

    scaling = first.alpha / root(first.rank)
    ups = [
        nothing[:, :0] if part is None else part.up * (part.alpha / root(part.rank) / scaling) for part in parts
    ]  # (O / parts, r of the part)
    down = torch.cat([part.down for part in there])  # (all r, I)
    return LayerAdapter(down=down, up=torch.block_diag(*ups), alpha=scaling * root(len(down)), magnitude=magnitude)


def _peft_settings(path: Path, header: Mapping[str, str]) -> _Stated:
    values = read_json(path, missing=f"expected a folder of peft, found no {path}")
    for name, allowed in _UNSUPPORTED.items():
        if name in values and values[name] not in allowed:
            raise UserError(f"{path}: {name}: expected {allowed[0]}, found {values[name]}: another kind of adapter")
    return _settings(values, base=str(values.get("base_model_name_or_path") or ""), word=header.get("trigger_word", ""))


def _file_settings(header: Mapping[str, str], file: Path) -> _Stated:
    try:
        values = json.loads(header.get(_METADATA, "{}"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: {_METADATA} in its header is not JSON: {error}") from error
    own = {name.removeprefix("transformer."): value for name, value in values.items()}
    return _settings(own, base="", word=header.get("trigger_word", ""))


def _settings(values: Mapping[str, Any], *, base: str, word: str) -> _Stated:
    alpha = values.get("lora_alpha")
    return _Stated(
        alpha=None if alpha is None else float(alpha),
        alphas=values.get("alpha_pattern") or {},
        rslora=bool(values.get("use_rslora")),
        base=base,
        trigger_word=word,
    )
