"""Checkpoints of others in, checkpoints for others out: `python -m model.convert --source … --target … IN OUT`.

in:  official (PixArt-alpha and Sigma, .pth or .safetensors), dit (class-conditional DiT), diffusers (a folder), native
out: native (a folder of ours), official (a file), diffusers (a folder that PixArtAlphaPipeline.from_pretrained opens)
Every key is accounted for; one that is missing, unexpected or of another shape is refused by name. Nothing is lost either way.
"""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from model.command_line import UserError, run_command
from model.dit_config import DiTConfig, UnstatedConfig

if TYPE_CHECKING:
    from torch import Tensor

    from model.checkpoint import PipelineConfig

T = TypeVar("T")
Status = Literal["loaded", "reshaped", "missing", "unexpected"]
_PUBLISHED = {120: "PixArt-alpha/PixArt-XL-2-1024-MS", 300: "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"}


@dataclass(frozen=True)
class ConvertConfig:
    """Settings of `python -m model.convert`."""

    checkpoint: str
    """What to convert: a file (official, dit) or a folder (diffusers, native)."""
    out: str
    """Where to: a new folder (native, diffusers), or a file that ends in .pth, .pt or .safetensors (official)."""
    source: Literal["official", "dit", "diffusers", "native"]
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
    """What an official file was trained for."""
    text_encoder: str = ""
    """Text encoder to go with an official file; empty: the published one."""
    vae: str = ""
    """VAE to go with an official file; empty: the published one."""
    unstated: UnstatedConfig = field(default_factory=UnstatedConfig)
    """What an official file does not tell."""


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
    write(conversion, config)
    counts = Counter(key.status for key in conversion.keys)
    statuses: tuple[Status, ...] = ("loaded", "reshaped", "missing", "unexpected")
    print(", ".join(f"{status} {counts[status]}" for status in statuses))
    for key in conversion.keys:
        if key.note:
            print(f"  {key.name}: {key.note}")
    if config.report:
        Path(config.report).write_text(json.dumps([vars(key) for key in conversion.keys], indent=1) + "\n", encoding="utf-8")
    network = conversion.config
    print(
        f"wrote {config.out}: {config.target}, {network.conditioning}-conditional, width {network.width}, depth {network.depth}"
    )
    return 0


def read(config: ConvertConfig) -> Conversion:
    """Reads the input. Raises UserError, by name, for whatever is not as it should be."""
    path = Path(config.checkpoint).expanduser()
    if config.source == "native":
        return _read_native(path)
    if config.source == "diffusers":
        return _read_diffusers(path)
    return _read_official(path, config)


def write(conversion: Conversion, config: ConvertConfig) -> None:
    """Writes the target, whole or not at all. Raises UserError where something is already there."""
    from model.checkpoint import save_checkpoint
    from model.diffusers_files import write_folder
    from model.dit import DiT
    from model.official_files import official_state, write_weights
    from model.state_dicts import to_diffusers

    out = Path(config.out).expanduser()
    if out.exists():
        raise UserError(f"{out} is already there: give another OUT, or remove it")
    if config.target == "official":
        state = official_state(conversion.state, conversion.config)
        write_weights(out, state, wrapped=conversion.config.conditioning == "text")
    elif config.target == "diffusers":
        theirs = to_diffusers(conversion.state, conversion.config)
        with _new_folder(out) as folder:
            write_folder(folder, theirs, conversion.config, conversion.pipeline, copy_parts=config.copy_parts)
    else:
        network = _on_meta(lambda: DiT(conversion.config))
        network.load_state_dict(dict(conversion.state), assign=True)
        save_checkpoint(out, network, conversion.pipeline)


def _read_native(path: Path) -> Conversion:
    from model.checkpoint import load_checkpoint

    network, pipeline = load_checkpoint(path)
    state = network.state_dict()
    keys = [Key(name=name, status="loaded", ours=name) for name in state]
    return Conversion(config=network.config, state=state, pipeline=pipeline, keys=keys)


def _read_official(path: Path, config: ConvertConfig) -> Conversion:
    import torch

    from model.checkpoint import PartConfig, PipelineConfig
    from model.official_files import NULL_CAPTION, POSITIONS, infer_config, read_weights

    state = read_weights(path, weights=config.weights)
    network = infer_config(state, config.unstated, source=config.source)
    keys = [Key(name=name, status="loaded", ours=name) for name in state if name != POSITIONS]
    if state.pop(POSITIONS, None) is not None:
        note = f"computed from sample_size {network.sample_size} and position_scale {network.position_scale}"
        keys.append(Key(name=POSITIONS, status="loaded", note=note))
    if network.conditioning == "text" and NULL_CAPTION not in state:
        dtype = state["x_embedder.proj.weight"].dtype
        state[NULL_CAPTION] = torch.zeros(network.max_caption_tokens, network.caption_width, dtype=dtype)
        keys.append(Key(name=NULL_CAPTION, status="missing", ours=NULL_CAPTION, note="zeros; only the authors' code reads it"))
    _check(state, _expected(network), where=path)
    published = _PUBLISHED.get(network.max_caption_tokens, _PUBLISHED[120])
    flow = config.objective == "rectified_flow"
    pipeline = PipelineConfig(
        objective=config.objective,
        objective_settings={} if flow or network.learned_variance else {"learned_variance": False},
        resolution=8 * network.sample_size,
        text_encoder=PartConfig(name=config.text_encoder or published),
        vae=PartConfig(name=config.vae or published),
        licence="see the source",
    )
    return Conversion(config=network, state=state, pipeline=pipeline, keys=keys)


def _read_diffusers(path: Path) -> Conversion:
    import torch

    from model.diffusers_files import read_folder
    from model.official_files import NULL_CAPTION
    from model.state_dicts import diffusers_names, from_diffusers, to_diffusers

    network, theirs, pipeline = read_folder(path)
    expected = _on_meta(lambda: to_diffusers(_expected(network), network))
    _check(theirs, expected, where=path)
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


def _check(found: "Mapping[str, Tensor]", expected: "Mapping[str, Tensor]", *, where: Path) -> None:
    """Raises UserError that names what is missing, unexpected or of another shape."""
    problems = []
    for what, names in (("missing", expected.keys() - found.keys()), ("unexpected", found.keys() - expected.keys())):
        if names:
            shown = ", ".join(sorted(names)[:8]) + (" …" if len(names) > 8 else "")
            problems.append(f"{len(names)} {what}: {shown}")
    problems += [
        f"{name}: expected {list(expected[name].shape)}, found {list(found[name].shape)}"
        for name in sorted(expected.keys() & found.keys())
        if expected[name].shape != found[name].shape
    ]
    if problems:
        raise UserError(f"{where} is not the network that its shapes imply: {'; '.join(problems[:6])}")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when the block ends well, and vanishes when it does not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield partial
        partial.chmod(0o755)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
