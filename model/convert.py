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
from model.formats.conversion import (
    CaptionCleaning,
    Conversion,
    ObjectiveName,
    Origin,
    Source,
    Status,
    StoredDtype,
    Target,
    Weights,
    read,
    write,
)


@dataclass(frozen=True)
class ConvertConfig:
    """Settings of `python -m model.convert`."""

    checkpoint: str
    """Input: a file (official, dit), a folder (diffusers, native) or the name of a preset."""
    out: str
    """Output: a new folder (native, diffusers) or a file that ends in .pth, .pt or .safetensors (official)."""
    source: Source
    """Format of the input."""
    target: Target
    """Format of the output."""
    weights: Weights = "auto"
    """Weights to take from a training checkpoint of the authors; auto: the averaged ones (EMA) where the file has them."""
    copy_parts: bool = True
    """Copy text encoder, tokenizer and VAE into the folder (diffusers only); without, give them to from_pretrained."""
    report: str = ""
    """Path of a JSON report on every key; empty: none."""
    objective: ObjectiveName = "diffusion"
    """Objective of an official file or a preset."""
    text_encoder: str = ""
    """Text encoder: folder or hub id; default: the input's own, else the published one, for the preset mini the shipped one."""
    vae: str = ""
    """VAE: folder or hub id; default: as for text_encoder."""
    dtype: StoredDtype = "stored"
    """Number format of the written weights; stored: that of the input, so that nothing is lost."""
    licence: str = ""
    """Licence of the weights and terms of their training data; empty: those that the input records."""
    caption_cleaning: CaptionCleaning = "auto"
    """Cleaning of captions that the network was trained with: none, lower or thorough; auto: thorough, as PixArt's authors and
    diffusers clean, for an official file or a folder of diffusers that does not say otherwise, else that of the input."""
    unstated: UnstatedConfig = field(default_factory=UnstatedConfig)
    """Settings that the input does not record."""

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
            caption_cleaning=self.caption_cleaning,
            unstated=self.unstated,
        )


def main(config: ConvertConfig) -> int:
    """Converts, prints a summary of the keys and returns 0."""
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
    if note := _cleaning_note(config, conversion):
        print(note)
    network = conversion.config
    print(
        f"wrote {config.out}: {config.target}, {network.conditioning}-conditional, width {network.width}, depth {network.depth}"
    )
    return 0


def _cleaning_note(config: ConvertConfig, conversion: Conversion) -> str:
    """A line where the cleaning of captions is assumed, or where diffusers would clean otherwise; "" elsewhere."""
    cleaning = conversion.pipeline.caption_cleaning
    if conversion.config.conditioning != "text":
        return ""
    if config.target == "diffusers" and cleaning != "thorough":
        return (
            f"  captions: this network was trained with {cleaning} cleaning, and diffusers cleans prompts thoroughly unless "
            "the pipeline is called with clean_caption=False"
            + (", which still makes them lower case" if cleaning == "none" else "")
        )
    if config.source in ("official", "diffusers") and config.target == "native" and config.caption_cleaning == "auto":
        return f"  captions: {cleaning} cleaning; where the network was trained with another, name it by --caption_cleaning"
    return ""


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
