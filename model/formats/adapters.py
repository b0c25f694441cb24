"""Adapters of a command line, found, read and checked against the network that they are added to."""

from collections.abc import Sequence
from pathlib import Path

from foundry.errors import UserError
from model.dit_config import DiTConfig
from model.formats.checkpoint import (
    check_base,
    check_is_network,
    checkpoint_fingerprint,
    find_checkpoint,
    is_adapted,
    read_own_adapter,
    read_transformer_config,
)
from model.formats.peft_files import is_peft_folder, read_foreign
from model.lora.adapter import Adapter, ScaledAdapter
from model.lora.file import is_adapter_file, read_adapter
from model.lora.settings import LoraChoice

_DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
"""File that diffusers' save_lora_weights writes into a folder."""


def open_adapters(choices: Sequence[LoraChoice], checkpoint: str | Path) -> list[ScaledAdapter]:
    """The adapters, to be added to a checkpoint. Raises UserError for what is missing, or is one of another network."""
    if not choices:
        return []
    root = find_checkpoint(checkpoint)
    config, found = read_transformer_config(root), checkpoint_fingerprint(root)
    opened = []
    for choice in choices:
        adapter = read_any(choice.path, config)
        check_base(adapter, found, source=choice.path, base=str(checkpoint))
        opened.append(ScaledAdapter(adapter=adapter, scale=choice.scale, source=choice.path))
    return opened


def read_any(path: str, config: DiTConfig) -> Adapter:
    """An adapter of a network of this configuration, of any kind that we read. Raises UserError for anything else."""
    where = Path(path).expanduser()
    if is_peft_folder(where):
        return read_foreign(where, config)
    if where.is_file():
        if where.suffix != ".safetensors":
            raise UserError(f"{path}: expected an adapter as .safetensors, found {where.name}", setting="lora")
        return read_adapter(where) if is_adapter_file(where) else read_foreign(where, config)
    if (of_diffusers := where / _DIFFUSERS_FILE).is_file():
        return read_foreign(of_diffusers, config)
    try:
        root = find_checkpoint(where)
    except UserError as error:
        raise UserError(
            f"{path}: expected an adapter (a checkpoint of a LoRA training, a .safetensors file, a folder of peft), found "
            f"none: {error}",
            setting="lora",
        ) from error
    check_is_network(root)
    if not is_adapted(root):
        raise UserError(f"{path} is a whole network, not a LoRA: give it as the checkpoint", setting="lora")
    return read_own_adapter(root)


def adapter_records(adapters: Sequence[ScaledAdapter]) -> list[dict[str, object]]:
    """Adapters that were added to a network, as images record them."""
    return [
        {
            "lora": one.source,
            "scale": one.scale,
            "fingerprint": one.adapter.fingerprint(),
            "trigger_word": one.adapter.trigger_word,
        }
        for one in adapters
    ]
