"""Command that converts checkpoints from and to other formats: `python -m model.convert --source … --target … IN OUT`.

in:  official (PixArt-alpha and Sigma, .pth or .safetensors), dit (class-conditional DiT), diffusers (a folder), native,
     or preset: an untrained network of these sizes, to try all commands with
out: native (a folder of ours), official (a file), diffusers (a folder that PixArtAlphaPipeline.from_pretrained opens)
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from foundry.command_line import run_command
from foundry.storage.folder import new_file
from model.dit_config import UnstatedConfig
from model.formats.conversion import ObjectiveName, Origin, Source, Status, StoredDtype, Target, Weights, read, write


@dataclass(frozen=True)
class ConvertConfig:
    """Settings of `python -m model.convert`."""

    checkpoint: str
    """What to convert: a file (official, dit), a folder (diffusers, native), or the name of a preset."""
    out: str
    """Where to: a new folder (native, diffusers), or a file that ends in .pth, .pt or .safetensors (official)."""
    source: Source
    """What the input is."""
    target: Target
    """What to write."""
    weights: Weights = "auto"
    """Which weights of an official training checkpoint; auto: the averaged ones (EMA) where the file has them."""
    copy_parts: bool = True
    """diffusers: copy text encoder, tokenizer and VAE into the folder; else give them to from_pretrained yourself."""
    report: str = ""
    """Write what became of every key to this JSON file."""
    objective: ObjectiveName = "diffusion"
    """What an official file was trained for, or a preset will be."""
    text_encoder: str = ""
    """The text encoder to go with it; empty: the input's own, else the published one, for the preset mini the shipped one."""
    vae: str = ""
    """The VAE, likewise."""
    dtype: StoredDtype = "stored"
    """Of the weights that are written; stored: as the input has them, so that nothing is lost."""
    licence: str = ""
    """Licence of the weights, and terms of what they were trained on; empty: what the input says."""
    unstated: UnstatedConfig = field(default_factory=UnstatedConfig)
    """What the input does not tell."""

    def origin(self) -> Origin:
        """The input, with what the options say about it."""
        return Origin(
            checkpoint=self.checkpoint,
            source=self.source,
            weights=self.weights,
            objective=self.objective,
            text_encoder=self.text_encoder,
            vae=self.vae,
            dtype=self.dtype,
            licence=self.licence,
            unstated=self.unstated,
        )


def main(config: ConvertConfig) -> int:
    """Converts and prints what became of the keys; returns 0."""
    conversion = read(config.origin())
    write(conversion, Path(config.out), target=config.target, copy_parts=config.copy_parts)
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
