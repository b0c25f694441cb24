"""Rewriter of the small world, judged: `python -m examples.openmoji.evaluate_rewriter runs/rewriter/rewriter`.

Prompts of the benchmark's kind, with another seed, are rewritten; the parser of captions reads each text, and what the prompt
states is held against it. `all` is the share of texts that keep everything and name nothing else; half of the prompts that
state places ask for held-out combinations.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from examples.openmoji.checks import check
from examples.openmoji.prompts import WorldPrompt, draw_prompts
from examples.openmoji.truth import read_caption
from foundry.command_line import run_command


@dataclass(frozen=True)
class EvaluateRewriterConfig:
    """Settings of the evaluation."""

    rewriter: str
    """Folder of the rewriter."""
    prompts_per_category: int = 25
    """Prompts per category and split."""
    seed: int = 4040
    """Random seed for the prompts; the benchmark's is another."""


def main(config: EvaluateRewriterConfig) -> int:
    """Prints the shares, by category and as a line of JSON; returns 0."""
    from model.rewriting.rewriter import open_rewriter

    prompts = draw_prompts(count=config.prompts_per_category, seed=config.seed)
    texts = dict(open_rewriter(config.rewriter).rewrite([prompt.text for prompt in prompts]))
    rewritten = [texts[index] for index in range(len(prompts))]
    for category in dict.fromkeys(prompt.category for prompt in prompts):
        own = [pair for pair in zip(prompts, rewritten, strict=True) if pair[0].category == category]
        print(f"{category:12}{kept(own)['all']:.3f} of {len(own)}")
    held_out = [pair for pair in zip(prompts, rewritten, strict=True) if pair[0].held_out]
    print(json.dumps({**kept(zip(prompts, rewritten, strict=True)), "all_held_out": kept(held_out)["all"]}))
    return 0


def kept(pairs: Iterable[tuple[WorldPrompt, str]]) -> dict[str, float]:
    """The mean of each check of checks.py over prompts and their rewritten forms."""
    found: dict[str, list[float]] = defaultdict(list)
    for prompt, text in pairs:
        for name, value in check(read_caption(text), prompt.asked).items():
            found[name].append(value)
    return {name: round(fmean(values), 4) for name, values in found.items()}


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            EvaluateRewriterConfig,
            main,
            prog="python -m examples.openmoji.evaluate_rewriter",
            example="python -m examples.openmoji.evaluate_rewriter runs/rewriter/rewriter",
            positional=["rewriter"],
        )
    )
