"""File of a control: safetensors under the copies' names, with base, condition and number of blocks in its header.

0.before.weight (D, D)    0.block.attn.qkv.weight …, as the network's blocks    0.after.weight (D, D)    1.block…
"""

from pathlib import Path

from foundry.errors import UserError
from foundry.storage.folder import new_file
from model.control.control import Control
from model.lora.file import read_header

VERSION = "1"
_KIND = "t2i-foundry control"


def write_control(path: Path, control: Control) -> None:
    """Writes the file, whole or not at all."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in control.tensors.items()}
    header = {
        "format": "pt",
        "kind": _KIND,
        "version": VERSION,
        "condition": control.condition,
        "num_blocks": str(control.num_blocks),
        "base": control.base,
        "base_fingerprint": control.base_fingerprint,
    }
    with new_file(path) as partial:
        save_file(tensors, partial, metadata=header)


def read_control(path: Path) -> Control:
    """Reads the file. Raises UserError for one that is cut off, or of another kind."""
    from safetensors.torch import load_file

    header = read_header(path)
    if (header.get("kind"), header.get("version")) != (_KIND, VERSION):
        found = f"{header.get('kind', 'none')}, version {header.get('version', 'none')}"
        raise UserError(f"{path}: expected a header of kind {_KIND}, version {VERSION}, found {found}", setting="control")
    return Control(
        tensors=load_file(path),
        condition=header.get("condition", ""),
        base=header.get("base", ""),
        base_fingerprint=header.get("base_fingerprint", ""),
    )
