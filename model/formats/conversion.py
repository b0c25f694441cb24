"""Conversion of checkpoints between formats: a network is read under our names, with a line on every key, and written.

Every key is accounted for; one that is missing, unexpected or of another shape is refused by name. Nothing is lost either way.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from foundry.errors import UserError
from foundry.storage.folder import new_file, new_folder
from model.dit_config import DiTConfig, UnstatedConfig
from model.encoders.frozen_parts import PUBLISHED
from model.lora.settings import LoraChoice, parse_choices

if TYPE_CHECKING:
    from torch import Tensor

    from model.formats.checkpoint import PipelineConfig
    from model.lora.adapter import Adapter

T = TypeVar("T")
Source = Literal["official", "dit", "diffusers", "native", "preset"]
Target = Literal["native", "official", "diffusers", "peft", "controlnet"]
Status = Literal["loaded", "reshaped", "missing", "unexpected"]
Weights = Literal["auto", "ema", "raw"]
ObjectiveName = Literal["diffusion", "rectified_flow"]
StoredDtype = Literal["stored", "float32", "bfloat16", "float16"]
CaptionCleaning = Literal["auto", "none", "lower", "thorough"]
_COMPLAINT = "{} is not the network that its shapes imply"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Checkpoint or preset to read, and what is known about it beyond its files."""

    checkpoint: str
    """Input: a file (official, dit), a folder (diffusers, native) or the name of a preset."""
    source: Source
    """Format of the input."""
    weights: Weights = "auto"
    """Weights to take from a training checkpoint of the authors; auto: the averaged ones (EMA) where the file has them."""
    objective: ObjectiveName = "diffusion"
    """Objective of an official file, a preset, or a folder of diffusers without a scheduler."""
    text_encoder: str = ""
    """Text encoder: folder or hub id; default: the input's own, otherwise the published one; for the preset mini, the bundled
    one."""
    vae: str = ""
    """VAE: folder or hub id; default: as for text_encoder."""
    dtype: StoredDtype = "stored"
    """Number format of the written weights; stored: that of the input, so that nothing is lost."""
    licence: str = ""
    """Licence of the weights and terms of their training data; empty: those that the input records."""
    caption_cleaning: CaptionCleaning = "auto"
    """Cleaning of captions that the network was trained with: none, lower or thorough; auto: thorough, as PixArt's authors and
    diffusers clean, for an official file or a folder of diffusers that does not say otherwise, else that of the input."""
    lora: tuple[str, ...] = ()
    """LoRA adapters to merge into the weights, each PATH or PATH:SCALE. The input is then native."""
    unstated: UnstatedConfig = field(default_factory=UnstatedConfig)
    """Settings that the input does not record."""

    def __post_init__(self) -> None:
        if self.lora and self.source != "native":
            raise ValueError("lora: expected source native, since an adapter names its base: convert the checkpoint first")
        parse_choices(self.lora)


@dataclass(frozen=True, kw_only=True)
class Key:
    """Outcome of one key of the input, or of one that should have been there."""

    name: str
    status: Status
    ours: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """Network read from an input: tensors under our names, all there."""

    config: DiTConfig
    state: "Mapping[str, Tensor]"
    pipeline: "PipelineConfig"
    keys: list[Key]
    is_assumed: bool = False
    """Whether the objective is assumed, since a folder of diffusers has no scheduler."""


def read(origin: Origin) -> Conversion:
    """Reads the input. Raises UserError, by name, for whatever is not as it should be."""
    path = Path(origin.checkpoint).expanduser()
    if origin.source == "native":
        conversion = _read_native(path, parse_choices(origin.lora))
    elif origin.source == "diffusers":
        conversion = _read_diffusers(path, origin)
    elif origin.source == "preset":
        conversion = _draw_preset(origin)
    else:
        conversion = _read_official(path, origin)
    pipeline = conversion.pipeline
    if origin.text_encoder:
        pipeline = replace(pipeline, text_encoder=replace(pipeline.text_encoder, name=origin.text_encoder, revision=None))
    if origin.vae:
        pipeline = replace(pipeline, vae=replace(pipeline.vae, name=origin.vae, revision=None))
    if origin.licence:
        pipeline = replace(pipeline, licence=origin.licence)
    if origin.caption_cleaning != "auto":
        pipeline = replace(pipeline, caption_cleaning=origin.caption_cleaning)
    state = _cast(conversion.state, origin.dtype)
    _check_finite(state, origin)
    return replace(conversion, pipeline=pipeline, state=state)


def write(conversion: Conversion, out: Path, *, target: Target, copy_parts: bool) -> None:
    """Writes the target, whole or not at all. Raises UserError if something is already there."""
    from model.dit import DiT
    from model.formats.checkpoint import save_checkpoint
    from model.formats.diffusers_files import write_folder
    from model.formats.official_files import official_state, write_weights
    from model.formats.state_dicts import to_diffusers

    out = out.expanduser()
    if out.exists():
        raise UserError(f"{out} already exists: give another OUT, or remove it")
    if target == "official":
        state = official_state(conversion.state, conversion.config)
        write_weights(out, state, wrapped=conversion.config.conditioning == "text")
    elif target == "diffusers":
        theirs = to_diffusers(conversion.state, conversion.config)
        with new_folder(out) as folder:
            write_folder(folder, theirs, conversion.config, conversion.pipeline, copy_parts=copy_parts)
    else:
        network = _on_meta(lambda: DiT(conversion.config))
        network.load_state_dict(dict(conversion.state), assign=True)
        save_checkpoint(out, network, conversion.pipeline)


def write_report(conversion: Conversion, path: Path) -> None:
    """Writes a line on every key as JSON."""
    with new_file(path) as report:
        report.write_text(json.dumps([vars(key) for key in conversion.keys], indent=1) + "\n", encoding="utf-8")


def _check_finite(state: "Mapping[str, Tensor]", origin: Origin) -> None:
    """Raises UserError for weights that are NaN or infinite, also where only the format that was asked for made them so."""
    if wrong := [name for name, tensor in state.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())]:
        overflows = "" if origin.dtype == "stored" else f", or {origin.dtype} overflows"
        raise UserError(
            f"{origin.checkpoint}: {wrong[0]} holds NaN or infinite values, as do {len(wrong) - 1} other tensors: "
            f"the file is damaged, or its training diverged{overflows}; nothing was written"
        )


def _cast(state: "Mapping[str, Tensor]", dtype: str) -> "Mapping[str, Tensor]":
    import torch

    return state if dtype == "stored" else {name: tensor.to(getattr(torch, dtype)) for name, tensor in state.items()}


def export_adapter(path: str, out: Path) -> "tuple[Adapter, str | None]":
    """Writes the adapter of a LoRA's checkpoint as a folder of peft; returns it, and the scheduler that one of few steps needs.

    Raises UserError if there is none, or diffusers cannot hold its network.
    """
    from model.formats.adapters import read_any
    from model.formats.checkpoint import find_checkpoint, read_pipeline_config, read_transformer_config
    from model.formats.diffusers_files import diffusers_scheduler
    from model.formats.peft_files import write_peft_folder

    if out.exists():
        raise UserError(f"{out} already exists: give another OUT, or remove it")
    root = find_checkpoint(path)
    config, pipeline = read_transformer_config(root), read_pipeline_config(root)
    adapter = read_any(str(root), config)
    write_peft_folder(out, adapter, config)
    if pipeline.few_steps is None:
        return adapter, None
    settings = diffusers_scheduler(pipeline)
    values = ", ".join(f"{name}={value!r}" for name, value in settings.items() if name != "_class_name")
    return adapter, f"{settings['_class_name']}({values})"


def _read_native(path: Path, lora: Sequence[LoraChoice]) -> Conversion:
    from model.formats.adapters import open_adapters
    from model.formats.checkpoint import load_checkpoint

    network, pipeline = load_checkpoint(path, adapters=open_adapters(lora, path))
    state = network.state_dict()
    keys = [Key(name=name, status="loaded", ours=name) for name in state]
    return Conversion(config=network.config, state=state, pipeline=pipeline, keys=keys)


def _read_official(path: Path, origin: Origin) -> Conversion:
    import torch

    from model.formats.checkpoint import check_tensors
    from model.formats.official_files import NULL_CAPTION, POSITIONS, infer_config, read_weights

    state = read_weights(path, weights=origin.weights)
    network = infer_config(state, origin.unstated, source=origin.source)
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
    pipeline = _pipeline(network, origin, part=published, licence="see the source")
    return Conversion(config=network, state=state, pipeline=pipeline, keys=keys)


def _draw_preset(origin: Origin) -> Conversion:
    """An untrained network: the weights that a training starts from, the same at every call."""
    import torch

    from model.dit import PRESETS, DiT

    name = origin.checkpoint
    if name not in PRESETS:
        raise UserError(f"expected a preset, one of {', '.join(PRESETS)}, found {name}")
    network = replace(PRESETS[name], learned_variance=origin.objective == "diffusion")
    state = DiT(network).initialise(torch.Generator().manual_seed(0)).state_dict()
    pipeline = _pipeline(network, origin, part="mini" if name == "mini" else PUBLISHED[120], licence="untrained")
    return Conversion(config=network, state=state, pipeline=pipeline, keys=[])


def _pipeline(network: DiTConfig, origin: Origin, *, part: str, licence: str) -> "PipelineConfig":
    """Pipeline of a network that comes without one; `part` has text encoder and VAE."""
    from model.formats.checkpoint import PartConfig, PipelineConfig

    plain = origin.objective == "rectified_flow" or network.learned_variance
    return PipelineConfig(
        objective=origin.objective,
        objective_settings={} if plain else {"learned_variance": False},
        resolution=8 * network.sample_size,
        text_encoder=PartConfig(name=part),
        vae=PartConfig(name=part),
        caption_cleaning="thorough" if origin.source == "official" else PipelineConfig.caption_cleaning,
        licence=licence,
    )


def _read_diffusers(path: Path, origin: Origin) -> Conversion:
    import torch

    from model.formats.checkpoint import check_tensors
    from model.formats.diffusers_files import has_scheduler, read_folder
    from model.formats.official_files import NULL_CAPTION
    from model.formats.state_dicts import diffusers_names, from_diffusers, to_diffusers

    network, theirs, pipeline = read_folder(path, origin.unstated, assumed_objective=origin.objective)
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
    return Conversion(config=network, state=state, pipeline=pipeline, keys=keys, is_assumed=not has_scheduler(path))


def _expected(config: DiTConfig) -> "Mapping[str, Tensor]":
    """Names and shapes of a network's tensors, without memory."""
    from model.dit import DiT

    return _on_meta(lambda: DiT(config).state_dict())


def _on_meta(make: Callable[[], T]) -> T:
    import torch

    with torch.device("meta"):
        return make()
