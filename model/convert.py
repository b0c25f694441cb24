"""Command that converts checkpoints from and to other formats: `python -m model.convert --source … --target … IN OUT`.

in:  official (PixArt-alpha and Sigma, .pth or .safetensors), dit (class-conditional DiT), diffusers (a folder), native,
     or preset: an untrained network of these sizes, to try the other commands
out: native (a folder of this package), official (a file), diffusers (a folder that PixArtAlphaPipeline.from_pretrained opens),
     peft (of a LoRA's checkpoint: its adapter, a folder that PeftModel.from_pretrained opens),
     controlnet (of a control's checkpoint: the control, a folder that diffusers' research example for PixArt opens)
For all other targets, a LoRA's checkpoint becomes a whole network; --lora merges further adapters.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from foundry.command_line import run_command
from foundry.errors import UserError
from foundry.reporting.lines import say
from foundry.storage.locations import is_url
from model.formats.conversion import Conversion, Origin, Status, Target, export_adapter, read, write, write_report


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(Origin):
    """Settings of `python -m model.convert`: the input, with what is known about it, and the output."""

    out: str
    """Output: a new folder (native, diffusers, peft, controlnet) or a file ending in .pth, .pt or .safetensors (official)."""
    target: Target
    """Format of the output."""
    copy_parts: bool = True
    """Copy text encoder, tokenizer and VAE into the folder (diffusers only); without them, pass them to from_pretrained."""
    report: str = ""
    """Path of a JSON report on every key; empty: no report."""


def main(config: ConvertConfig) -> int:
    """Converts, prints a summary of the keys and returns 0."""
    if is_url(config.out):
        raise UserError(
            f"{config.out}: expected a path on this machine, found a URL: write there, then push or copy it", setting="out"
        )
    if config.target == "peft":
        return _export(config)
    if config.target == "controlnet":
        return _export_control(config)
    conversion = read(config)
    write(conversion, Path(config.out), target=config.target, copy_parts=config.copy_parts)
    counts = Counter(key.status for key in conversion.keys)
    statuses: tuple[Status, ...] = ("loaded", "reshaped", "missing", "unexpected")
    if conversion.keys:
        say(", ".join(f"{status} {counts[status]}" for status in statuses))
    for key in conversion.keys:
        if key.note:
            say(f"  {key.name}: {key.note}")
    if config.report:
        write_report(conversion, Path(config.report))
    if conversion.is_assumed:
        say(
            f"  objective: {conversion.pipeline.objective}, since the folder has no scheduler/scheduler_config.json; where the "
            "network was trained by another, name it by --objective"
        )
    if note := _cleaning_note(config, conversion):
        say(note)
    network = conversion.config
    say(
        f"wrote {config.out}: {config.target}, {network.conditioning}-conditional, width {network.width}, depth {network.depth}"
    )
    return 0


def _export(config: ConvertConfig) -> int:
    """Writes an adapter for peft and diffusers, and says how it is opened."""
    if config.source != "native" or config.lora:
        raise UserError("peft: expected a LoRA's checkpoint and source native, without lora", setting="source")
    adapter, scheduler = export_adapter(config.checkpoint, Path(config.out))
    say(f"wrote {config.out}: a LoRA of rank {adapter.rank}, {adapter.num_parameters:,} values, of {adapter.base}")
    say(f'  open it: pipeline.transformer = PeftModel.from_pretrained(pipeline.transformer, "{config.out}")')
    if scheduler is not None:
        say(f"  sample it: pipeline.scheduler = {scheduler}; no guidance (guidance_scale=1)")
    return 0


def _export_control(config: ConvertConfig) -> int:
    """Writes a control for diffusers' research example, and says how it is opened."""
    from model.dit_config import DiTConfig
    from model.formats.controls import CLASS, export_control

    if config.source != "native" or config.lora:
        raise UserError("controlnet: expected a control's checkpoint and source native, without lora", setting="source")
    control, width = export_control(config.checkpoint, Path(config.out))
    say(
        f"wrote {config.out}: a control of {control.num_blocks} blocks, {control.num_parameters:,} values, of {control.base}, "
        f"trained on {control.condition or 'unknown images'}"
    )
    say(f"  open it: {CLASS}.from_pretrained({config.out!r}), a class of diffusers' examples/research_projects/pixart")
    if width != DiTConfig.width:
        say(f"  that class has a width of {DiTConfig.width}, and this network {width}: change it there")
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
