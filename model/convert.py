"""Checkpoints of others in, checkpoints for others out: `python -m model.convert --source … --target … IN OUT`.

in:  official (PixArt-alpha and Sigma, .pth or .safetensors), dit (class-conditional DiT), diffusers (a folder), native,
     or preset: an untrained network of these sizes, to try all commands with
out: native (a folder of ours), official (a file), diffusers (a folder that PixArtAlphaPipeline.from_pretrained opens)
Every key is accounted for; one that is missing, unexpected or of another shape is refused by name. Nothing is lost either way.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from foundry.command_line import run_command
from foundry.errors import UserError
from foundry.storage.new_files import new_file, new_folder
from model.dit_config import DiTConfig, UnstatedConfig
from model.formats.frozen_parts import PUBLISHED

if TYPE_CHECKING:
    from torch import Tensor

    from model.formats.checkpoint import PipelineConfig

T = TypeVar("T")
Status = Literal["loaded", "reshaped", "missing", "unexpected"]
_COMPLAINT = "{} is not the network that its shapes imply"


@dataclass(frozen=True)
class ConvertConfig:
    """Settings of `python -m model.convert`."""

    checkpoint: str
    """What to convert: a file (official, dit), a folder (diffusers, native), or the name of a preset."""
    out: str
    """Where to: a new folder (native, diffusers), or a file that ends in .pth, .pt or .safetensors (official)."""
    source: Literal["official", "dit", "diffusers", "native", "preset"]
    """What the input is."""
    target: Literal["native", "official", "diffusers"]
    """What to write."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Which weights of an official training checkpoint; auto: the averaged ones (EMA) where the file has them."""
    copy_parts: bool = True
    """diffusers: copy text encoder, tokenizer and VAE into the folder; else give them to from_pretrained yourself."""
    report: str = ""
    """Write what became of every key to this JSON file."""
    objective: Literal["diffusion", "rectified_flow"] = "diffusion"
    """What an official file was trained for, or a preset will be."""
    text_encoder: str = ""
    """The text encoder to go with it; empty: the input's own, else the published one, for the preset mini the shipped one."""
    vae: str = ""
    """The VAE, likewise."""
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored"
    """Of the weights that are written; stored: as the input has them, so that nothing is lost."""
    licence: str = ""
    """Licence of the weights, and terms of what they were trained on; empty: what the input says."""
    unstated: UnstatedConfig = field(default_factory=UnstatedConfig)
    """What the input does not tell."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """What became of one key of the input, or of one that should have been there."""

    name: str
    status: Status
    ours: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A network read from somewhere: tensors under our names, all there."""

    config: DiTConfig
    state: "Mapping[str, Tensor]"
    pipeline: "PipelineConfig"
    keys: list[Key]


def main(config: ConvertConfig) -> int:
    """Converts and prints what became of the keys; returns 0."""
    conversion = read(config)
    _check_finite(conversion.state, config)
    write(conversion, config)
    counts = Counter(key.status for key in conversion.keys)
    statuses: tuple[Status, ...] = ("loaded", "reshaped", "missing", "unexpected")
    if conversion.keys:
        print(", ".join(f"{status} {counts[status]}" for status in statuses))
    for key in conversion.keys:
        if key.note:
            print(f"  {key.name}: {key.note}")
    if config.report:
        with new_file(Path(config.report)) as report:
            report.write_text(json.dumps([vars(key) for key in conversion.keys], indent=1) + "\n", encoding="utf-8")
    network = conversion.config
    print(
        f"wrote {config.out}: {config.target}, {network.conditioning}-conditional, width {network.width}, depth {network.depth}"
    )
    return 0


def read(config: ConvertConfig) -> Conversion:
    """Reads the input. Raises UserError, by name, for whatever is not as it should be."""
    path = Path(config.checkpoint).expanduser()
    if config.source == "native":
        conversion = _read_native(path)
    elif config.source == "diffusers":
        conversion = _read_diffusers(path, config)
    elif config.source == "preset":
        conversion = _draw_preset(config)
    else:
        conversion = _read_official(path, config)
    pipeline = conversion.pipeline
    if config.text_encoder:
        pipeline = replace(pipeline, text_encoder=replace(pipeline.text_encoder, name=config.text_encoder, revision=None))
    if config.vae:
        pipeline = replace(pipeline, vae=replace(pipeline.vae, name=config.vae, revision=None))
    if config.licence:
        pipeline = replace(pipeline, licence=config.licence)
    return replace(conversion, pipeline=pipeline, state=_cast(conversion.state, config.dtype))


def write(conversion: Conversion, config: ConvertConfig) -> None:
    """Writes the target, whole or not at all. Raises UserError where something is already there."""
    from model.dit import DiT
    from model.formats.checkpoint import save_checkpoint
    from model.formats.diffusers_files import write_folder
    from model.formats.official_files import official_state, write_weights
    from model.formats.state_dicts import to_diffusers

    out = Path(config.out).expanduser()
    if out.exists():
        raise UserError(f"{out} is already there: give another OUT, or remove it")
    if config.target == "official":
        state = official_state(conversion.state, conversion.config)
        write_weights(out, state, wrapped=conversion.config.conditioning == "text")
    elif config.target == "diffusers":
        theirs = to_diffusers(conversion.state, conversion.config)
        with new_folder(out) as folder:
            write_folder(folder, theirs, conversion.config, conversion.pipeline, copy_parts=config.copy_parts)
    else:
        network = _on_meta(lambda: DiT(conversion.config))
        network.load_state_dict(dict(conversion.state), assign=True)
        save_checkpoint(out, network, conversion.pipeline)


def _check_finite(state: "Mapping[str, Tensor]", config: ConvertConfig) -> None:
    """Raises UserError for weights that are NaN or infinite, also where only the format that was asked for made them so."""
    if wrong := [name for name, tensor in state.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())]:
        overflows = "" if config.dtype == "stored" else f", or --dtype {config.dtype} overflows"
        raise UserError(
            f"{config.checkpoint}: {wrong[0]} holds NaN or infinite values, as do {len(wrong) - 1} other tensors: "
            f"the file is damaged, or its training diverged{overflows}; nothing was written"
        )


def _cast(state: "Mapping[str, Tensor]", dtype: str) -> "Mapping[str, Tensor]":
    import torch

    return state if dtype == "stored" else {name: tensor.to(getattr(torch, dtype)) for name, tensor in state.items()}


def _read_native(path: Path) -> Conversion:
    from model.formats.checkpoint import load_checkpoint

    network, pipeline = load_checkpoint(path)
    state = network.state_dict()
    keys = [Key(name=name, status="loaded", ours=name) for name in state]
    return Conversion(config=network.config, state=state, pipeline=pipeline, keys=keys)


def _read_official(path: Path, config: ConvertConfig) -> Conversion:
    import torch

    from model.formats.checkpoint import check_tensors
    from model.formats.official_files import NULL_CAPTION, POSITIONS, infer_config, read_weights

    state = read_weights(path, weights=config.weights)
    network = infer_config(state, config.unstated, source=config.source)
    keys = [Key(name=name, status="loaded", ours=name) for name in state if name != POSITIONS]
    if state.pop(POSITIONS, None) is not None:
        note = f"computed from sample_size {network.sample_size} and position_scale {network.position_scale}"
        keys.append(Key(name=POSITIONS, status="loaded", note=note))
    if network.conditioning == "text" and NULL_CAPTION not in state:
        dtype = state["x_embedder.proj.weight"].dtype
        state[NULL_CAPTION] = torch.zeros(network.max_caption_tokens, network.caption_width, dtype=dtype)
        note = f"zeros for {network.max_caption_tokens} tokens; only the authors' code reads it"
        keys.append(Key(name=NULL_CAPTION, status="missing", ours=NULL_CAPTION, note=note))
    check_tensors(state, _expected(network), complaint=_COMPLAINT.format(path))
    published = PUBLISHED.get(network.max_caption_tokens, PUBLISHED[120])
    pipeline = _pipeline(network, config, part=published, licence="see the source")
    return Conversion(config=network, state=state, pipeline=pipeline, keys=keys)


def _draw_preset(config: ConvertConfig) -> Conversion:
    """An untrained network: the weights that a training starts from, the same at every call."""
    import torch

    from model.dit import PRESETS, DiT

    name = config.checkpoint
    if name not in PRESETS:
        raise UserError(f"--source preset: expected one of {', '.join(PRESETS)}, found {name}")
    network = replace(PRESETS[name], learned_variance=config.objective == "diffusion")
    state = DiT(network).initialise(torch.Generator().manual_seed(0)).state_dict()
    pipeline = _pipeline(network, config, part="mini" if name == "mini" else PUBLISHED[120], licence="untrained")
    return Conversion(config=network, state=state, pipeline=pipeline, keys=[])


def _pipeline(network: DiTConfig, config: ConvertConfig, *, part: str, licence: str) -> "PipelineConfig":
    """What goes with a network that comes without a pipeline; `part` has text encoder and VAE."""
    from model.formats.checkpoint import PartConfig, PipelineConfig

    plain = config.objective == "rectified_flow" or network.learned_variance
    return PipelineConfig(
        objective=config.objective,
        objective_settings={} if plain else {"learned_variance": False},
        resolution=8 * network.sample_size,
        text_encoder=PartConfig(name=part),
        vae=PartConfig(name=part),
        licence=licence,
    )


def _read_diffusers(path: Path, config: ConvertConfig) -> Conversion:
    import torch

    from model.formats.checkpoint import check_tensors
    from model.formats.diffusers_files import read_folder
    from model.formats.official_files import NULL_CAPTION
    from model.formats.state_dicts import diffusers_names, from_diffusers, to_diffusers

    network, theirs, pipeline = read_folder(path, config.unstated)
    expected = _on_meta(lambda: to_diffusers(_expected(network), network))
    check_tensors(theirs, expected, complaint=_COMPLAINT.format(path))
    names = diffusers_names(network)
    keys = [
        Key(name=part, status="loaded" if len(name.theirs) == 1 else "reshaped", ours=ours)
        for ours, name in names.items()
        for part in name.theirs
    ]
    state = from_diffusers(theirs, network)
    if network.conditioning == "text":
        dtype = state["x_embedder.proj.weight"].dtype
        state[NULL_CAPTION] = torch.zeros(network.max_caption_tokens, network.caption_width, dtype=dtype)
    return Conversion(config=network, state=state, pipeline=pipeline, keys=keys)


def _expected(config: DiTConfig) -> "Mapping[str, Tensor]":
    """Names and shapes of a network's tensors, without memory."""
    from model.dit import DiT

    return _on_meta(lambda: DiT(config).state_dict())


def _on_meta(make: Callable[[], T]) -> T:
    import torch

    with torch.device("meta"):
        return make()


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            ConvertConfig,
            main,
            prog="python -m model.convert",
            example="python -m model.convert --source official --target diffusers PixArt-XL-2-512x512.pth pixart-512",
            positional=["checkpoint", "out"],
        )
    )
