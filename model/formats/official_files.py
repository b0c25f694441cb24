"""Files of the authors: PixArt-alpha, PixArt-Sigma and class-conditional DiT, one file of weights without a configuration.

The configuration is read off the names and shapes; what these do not record (heads, and positions where the file has no
`pos_embed`) is known for the published widths or given. Pickled files are read with weights_only: nothing is executed.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundry.errors import UserError, one_line
from foundry.storage.folder import new_file
from model.dit import position_table
from model.dit_config import DiTConfig, KVCompression, UnstatedConfig

POSITIONS = "pos_embed"
NULL_CAPTION = "y_embedder.y_embedding"
_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
_SCALES = {120: {32: 1.0, 64: 1.0, 128: 2.0}, 300: {32: 0.5, 64: 1.0, 128: 2.0, 256: 4.0}}
_WRAPPERS = {"ema": ("state_dict_ema", "ema"), "raw": ("state_dict", "model")}
# Of a wrapped network: DistributedDataParallel, torch.compile, ComfyUI.
_PREFIXES = ("module.", "_orig_mod.", "model.diffusion_model.", "diffusion_model.")
_LORA = re.compile(r"lora_(up|down|A|B)\b|lora_(unet|te|transformer)_")
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, zipfile.BadZipFile)


def read_weights(path: Path, *, weights: str = "auto") -> dict[str, Tensor]:
    """The tensors of a .safetensors or pickled file; of a training checkpoint `ema` or `raw`, auto: EMA where there is one.

    Raises UserError for a file that is missing, cut off, holds more than tensors, or lacks the weights asked for.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise UserError(f"expected a file of weights (.pth, .pt or .safetensors), found {found} at {path}")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, *_UNREADABLE) as error:
        reason = one_line(error, limit=160)
        raise UserError(
            f"{path} ({path.stat().st_size} bytes) is truncated or not a checkpoint of tensors: {reason}"
        ) from error
    state = _unwrap(content, weights, path)
    if any(_LORA.search(key) for key in state):
        raise UserError(f"{path} holds a LoRA adapter, not a whole network: convert the network that it belongs to")
    prefix = next((prefix for prefix in _PREFIXES if state and all(key.startswith(prefix) for key in state)), "")
    return {key.removeprefix(prefix): tensor for key, tensor in state.items()}


def _unwrap(content: Any, weights: str, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: expected a dictionary of tensors, found {type(content).__name__}")
    sets: dict[str, Mapping[Any, Any] | None] = {
        kind: next((content[key] for key in keys if isinstance(content.get(key), Mapping) and content[key]), None)
        for kind, keys in _WRAPPERS.items()
    }
    if not any(sets.values()):
        sets["raw"] = content  # the tensors themselves, as DiT's files have them
    state = sets["ema"] or sets["raw"] if weights == "auto" else sets[weights]
    if state is None:
        raise UserError(
            f"{path} holds no {weights} weights, found {', '.join(kind for kind in sets if sets[kind])}: choose one of them",
            setting="weights",
        )
    wrong = [key for key, value in state.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if wrong or not state:
        raise UserError(f"{path}: expected tensors by name, found {f'{wrong[0]!r}, which is none' if wrong else 'nothing'}")
    return dict(state)


def infer_config(state: Mapping[str, Tensor], unstated: UnstatedConfig, *, source: str) -> DiTConfig:
    """The configuration that official names and shapes imply. Raises UserError, by name, where they imply none."""
    text = "y_embedder.y_proj.fc1.weight" in state
    if not text and "y_embedder.embedding_table.weight" not in state:
        raise UserError(
            "expected the names of an official PixArt or DiT file, found none under y_embedder; the first name is "
            f"{next(iter(state))}"
        )
    if text != (source == "official"):
        kind = "a text-conditional" if text else "no text-conditional"
        other = "official" if text else "dit"
        raise UserError(
            f"found {kind} network, which the source {source} is not: give the source {other}, or another file",
            setting="source",
        )
    patch = _shape(state, "x_embedder.proj.weight", 4)
    hidden = _shape(state, "blocks.0.mlp.fc1.weight", 2)
    depth = 1 + max(int(key.split(".")[1]) for key in state if re.match(r"blocks\.\d+\.", key))
    compressed = [index for index in range(depth) if f"blocks.{index}.attn.sr.weight" in state]
    width = patch[0]
    out = _shape(state, "final_layer.linear.weight", 2)[0] // patch[2] ** 2
    tokens = _shape(state, NULL_CAPTION, 2)[0] if NULL_CAPTION in state else unstated.max_caption_tokens or 120
    sample_size, scale = _positions(state, unstated, patch_size=patch[2], tokens=tokens)
    if not (heads := unstated.num_heads or _HEADS.get(width, 0)):
        raise UserError(
            f"the file does not tell the number of attention heads of width {width}: give it", setting="unstated.num_heads"
        )
    common: dict[str, Any] = {
        "sample_size": sample_size,
        "patch_size": patch[2],
        "in_channels": patch[1],
        "width": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": hidden[0] / width,
        "learned_variance": out == 2 * patch[1],
        "position_scale": scale,
    }
    if not text:
        rows = _shape(state, "y_embedder.embedding_table.weight", 2)[0]
        classes = unstated.num_classes or rows - 1
        return _config(common | {"conditioning": "class", "num_classes": classes, "null_class": rows > classes})
    factor = _shape(state, f"blocks.{compressed[0]}.attn.sr.weight", 4)[2] if compressed else 2
    return _config(
        common
        | {
            "caption_width": _shape(state, "y_embedder.y_proj.fc1.weight", 2)[1],
            "max_caption_tokens": tokens,
            "micro_conditioning": "csize_embedder.mlp.0.weight" in state,
            "qk_norm": "blocks.0.attn.q_norm.weight" in state,
            "kv_compression": KVCompression(layers=tuple(compressed), factor=factor),
            "text_adapter_blocks": len({name.split(".")[1] for name in state if name.startswith("text_adapter.")}),
        }
    )


def _config(values: dict[str, Any]) -> DiTConfig:
    try:
        return DiTConfig(**values)
    except ValueError as error:
        raise UserError(f"the shapes imply no network: {error}") from error


def _shape(state: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in state:
        raise UserError(
            f"expected a checkpoint with official names, found none called {name}; the first is {next(iter(state))}"
        )
    if state[name].ndim != dimensions or 0 in state[name].shape:
        raise UserError(f"{name}: expected {dimensions} dimensions, none of them 0, found {list(state[name].shape)}")
    return tuple(state[name].shape)


def _positions(state: Mapping[str, Tensor], unstated: UnstatedConfig, *, patch_size: int, tokens: int) -> tuple[int, float]:
    """Side of the latents and scale: read off pos_embed, else given, else the scale as published for the side."""
    if POSITIONS in state:
        stored = state[POSITIONS]
        side = round(stored.shape[1] ** 0.5) if stored.ndim == 3 else 0
        for scale in sorted({1.0, 2.0, 0.5, 4.0} | ({unstated.position_scale} - {0.0})) if side else ():
            table = position_table((side, side), width=stored.shape[-1], base=side, scale=scale)
            tolerance = 1e-5 if stored.dtype == torch.float32 else 1e-2
            if table.shape == stored.shape[1:] and torch.allclose(table, stored[0].float(), rtol=0, atol=tolerance):
                return side * patch_size, scale
        raise UserError(
            f"{POSITIONS} {list(stored.shape)}: expected sine-cosine positions of a square at scale 0.5, 1, 2 or 4, "
            "found others; give their scale",
            setting="unstated.position_scale",
        )
    side = unstated.sample_size
    scale = unstated.position_scale or _SCALES.get(tokens, _SCALES[120]).get(side, 0.0)
    if not side or not scale:
        raise UserError(
            f"the file has no {POSITIONS}, which tells the resolution: give the sample size (image side / 8: 32, 64, "
            "128) and, where that is not a published one, the scale of its positions",
            setting="unstated.sample_size",
        )
    return side, scale


def official_state(state: Mapping[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    """The whole official state dict: ours, and the positions of the base grid in the weights' dtype."""
    side = config.base_grid
    table = position_table((side, side), width=config.width, base=side, scale=config.position_scale)
    return {POSITIONS: table[None].to(state["x_embedder.proj.weight"].dtype), **state}


def write_weights(path: Path, state: Mapping[str, Tensor], *, wrapped: bool) -> None:
    """Writes .safetensors, or .pth and .pt; `wrapped` puts a pickled one under `state_dict`, as PixArt's files have it."""
    from safetensors.torch import save_file

    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise UserError(f"expected OUT to end in .pth, .pt or .safetensors, found {path}")
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    with new_file(path) as partial:
        if path.suffix == ".safetensors":
            save_file(tensors, partial)
        else:
            torch.save({"state_dict": tensors} if wrapped else tensors, partial)
