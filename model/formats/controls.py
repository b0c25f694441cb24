"""Controls of a command line, found, read and checked against their network; and in diffusers' names, in and out.

diffusers' research example keeps a control in a folder: config.json, with its class and number of copies, and safetensors under
`controlnet_blocks.<i>.` with `transformer_block` for the copied block, `before_proj` and `after_proj`. That class has
PixArt XL/2's width alone. Source: huggingface/diffusers, examples/research_projects/pixart/controlnet_pixart_alpha.py
(Apache-2.0), of which the names are taken.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from foundry.errors import UserError
from foundry.storage.folder import new_folder
from model.control.control import Control, check_fits, control_blocks
from model.control.file import read_control
from model.control.settings import ControlChoice
from model.dit_config import DiTConfig
from model.formats.checkpoint import (
    WEIGHTS,
    check_base,
    check_tensors,
    checkpoint_fingerprint,
    find_checkpoint,
    is_control,
    read_own_control,
    read_transformer_config,
)
from model.formats.json_files import read_json, write_json
from model.formats.state_dicts import diffusers_names

CLASS = "PixArtControlNetAdapterModel"
_CONFIG = "config.json"


def open_control(choice: ControlChoice, checkpoint: str | Path) -> Control:
    """The control, to be put into the network of a checkpoint. Raises UserError for what is missing, or of another network."""
    root = find_checkpoint(checkpoint)
    config = read_transformer_config(root)
    control = read_any_control(choice.path, config)
    check_base(control, checkpoint_fingerprint(root), source=choice.path, base=str(checkpoint))
    check_fits(control, config, source=choice.path)
    return control


def read_any_control(path: str, config: DiTConfig) -> Control:
    """A control of a network of this configuration, of any kind that we read. Raises UserError for anything else."""
    where = Path(path).expanduser()
    if (where / _CONFIG).is_file():
        return _read_folder(where, config)
    if where.is_file():
        return read_control(where)
    try:
        root = find_checkpoint(where)
    except UserError as error:
        raise UserError(
            f"{path}: expected a control (a checkpoint of a control training, its .safetensors file, a folder of diffusers), "
            f"found none: {error}",
            setting="control",
        ) from error
    if not is_control(root):
        raise UserError(f"{path} is a checkpoint without a control: expected one that was trained with it", setting="control")
    return read_own_control(root)


def control_record(choice: ControlChoice, control: Control) -> dict[str, object]:
    """A control that was put into a network, as images record it."""
    return {"control": choice.path, "scale": choice.scale, "fingerprint": control.fingerprint()}


def export_control(path: str, out: Path) -> tuple[Control, int]:
    """Writes the control of a checkpoint as diffusers' folder; returns it, and the network's width.

    Raises UserError if there is none, or that folder cannot hold it.
    """
    if out.exists():
        raise UserError(f"{out} already exists: give another OUT, or remove it")
    root = find_checkpoint(path)
    config = read_transformer_config(root)
    control = read_any_control(str(root), config)
    write_control_folder(out, control, config)
    return control, config.width


def write_control_folder(out: Path, control: Control, config: DiTConfig) -> None:
    """Writes diffusers' folder, whole or not at all. Raises UserError for a network that diffusers has not."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for ours, theirs in _names(config, control.num_blocks).items():
        parts = control.tensors[ours].chunk(len(theirs))
        tensors |= {name: part.detach().clone().cpu() for name, part in zip(theirs, parts, strict=True)}
    with new_folder(out) as partial:
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        write_json(partial / _CONFIG, {"_class_name": CLASS, "num_layers": control.num_blocks})


def _read_folder(folder: Path, config: DiTConfig) -> Control:
    """A folder of diffusers; what it was trained on, and on which weights, it does not say."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    values = read_json(folder / _CONFIG, missing=f"{folder / _CONFIG} is missing")
    num = values.get("num_layers")
    if values.get("_class_name") != CLASS or not isinstance(num, int) or not 1 <= num < config.depth:
        raise UserError(
            f"{folder / _CONFIG}: expected {CLASS} with num_layers of 1 to {config.depth - 1}, found "
            f"{values.get('_class_name')} with {num}",
            setting="control",
        )
    names = _names(config, num)
    try:
        found = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS} is missing, truncated or not safetensors: {error}") from error
    check_tensors(found, _expected(config, num, names), complaint=f"{folder} is a control of another network")
    tensors = {ours: torch.cat([found[name] for name in theirs]) for ours, theirs in names.items()}
    return Control(tensors=tensors)


def _names(config: DiTConfig, num: int) -> Mapping[str, tuple[str, ...]]:
    """diffusers' names of each tensor of a control: one, or those whose rows make it up."""
    names: dict[str, tuple[str, ...]] = {}
    for ours, theirs in diffusers_names(config).items():
        folder, _, rest = ours.partition(".")
        index, _, part = rest.partition(".")
        if folder == "blocks" and int(index) < num:
            mine, own = f"transformer_blocks.{index}.", f"controlnet_blocks.{index}.transformer_block."
            names[f"{index}.block.{part}"] = tuple(own + name.removeprefix(mine) for name in theirs.theirs)
    for layer, numbers in (("before", range(1)), ("after", range(num))):
        for number in numbers:
            for kind in ("weight", "bias"):
                names[f"{number}.{layer}.{kind}"] = (f"controlnet_blocks.{number}.{layer}_proj.{kind}",)
    return names


def _expected(config: DiTConfig, num: int, names: Mapping[str, tuple[str, ...]]) -> Mapping[str, Tensor]:
    """The tensors of such a folder, without values."""
    with torch.device("meta"):
        own = control_blocks(config, num).state_dict()
    pairs = ((theirs, own[ours].chunk(len(theirs))) for ours, theirs in names.items())
    return {name: part for theirs, parts in pairs for name, part in zip(theirs, parts, strict=True)}
