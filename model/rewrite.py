"""Command that rewrites prompts: `python -m model.rewrite --checkpoint CHECKPOINT --prompt "an owl" --out texts.jsonl`.

Each line of the output has a prompt, its rewritten form, the text to draw, and the reason if that is the original prompt. The
same command again only asks for prompts that are not in the cache.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from foundry.command_line import run_command
from foundry.reporting.lines import say
from foundry.wording import CHOICE, ModelChoice
from model.generation.prompt_files import read_prompts
from model.rewriting.config import OF_CHECKPOINT, RewriteConfig


@dataclass(frozen=True)
class RewriteCommandConfig:
    """Settings of `python -m model.rewrite`."""

    out: str
    """Path of the output, a .jsonl."""
    checkpoint: str = field(
        metadata={CHOICE: ModelChoice(real="FOLDER", what="your own network", toy="only draws 64-pixel emoji scenes")}
    )
    """Checkpoint that the prompts are for: a folder with transformer/ and pipeline.json, a training's folder, or `mini`."""
    prompt: str | None = None
    """Prompt to rewrite."""
    prompts_file: str | None = None
    """File of prompts, instead of one prompt: one per line (.txt), per object (.jsonl) or per row (.csv, .tsv)."""
    prompt_column: str = "prompt"
    """Column of the prompts in a .jsonl, .csv or .tsv."""
    rewrite: RewriteConfig = field(default_factory=lambda: RewriteConfig(model=OF_CHECKPOINT))
    """Rewriter of the prompts."""
    text_encoder: str | None = None
    """Folder or hub id of the text encoder, if not the one in pipeline.json."""
    device: str = "auto"
    """Device of a local rewriter: cuda, cpu, …; auto: cuda if available."""

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.prompts_file is None):
            raise ValueError("expected either --prompt or --prompts_file" + (", found both" if self.prompt is not None else ""))
        if self.rewrite.model is None:
            raise ValueError("rewrite.model must name a rewriter")


def main(config: RewriteCommandConfig) -> int:
    """Writes the texts, says how many prompts were rewritten, and returns 0."""
    from foundry.storage.folder import new_file
    from model.generation.pipeline_parts import RuntimeConfig
    from model.rewriting.rewriting import open_prompt_rewriter

    prompts = (
        (config.prompt,) if config.prompt is not None else read_prompts(config.prompts_file or "", column=config.prompt_column)
    )
    device = RuntimeConfig(device=config.device).resolved().device
    rewriter = open_prompt_rewriter(
        config.rewrite, checkpoint=config.checkpoint, text_encoder=config.text_encoder, device=device
    )
    out = Path(config.out)
    rewriting = rewriter.rewrite(prompts, cache=config.rewrite.cache or str(out.parent / "rewritten"))
    rows = [
        {"prompt": one.prompt, "rewritten": one.text, "drawn": one.drawn, "problem": one.problem}
        for one in rewriting.prompts.values()
    ]
    with new_file(out) as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    say(f"{out}: {rewriting.summary()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            RewriteCommandConfig,
            main,
            prog="python -m model.rewrite",
            example='python -m model.rewrite --checkpoint runs/aesthetic --prompt "an owl left of a key" --out texts.jsonl',
        )
    )
