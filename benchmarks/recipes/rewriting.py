"""Experiment on the rewriter: prompts drawn as a person wrote them, and rewritten into captions like those of the training."""

import json
from pathlib import Path

from benchmarks.commands import run_module
from benchmarks.staged_tables import figures, table

TITLE = "Rewriter"
QUESTION = (
    "Do prompts as a person writes them draw better when a rewriter turns them into captions first? The network is dit-mini, "
    "the rewriter is trained again for each seed, and each seed has its own noise."
)
_CATEGORIES = ("all prompts", "relation", "count", "place", "complex")
_SEEDS_APART = 1_000_000
_QUICK = ("--steps", "20")


def compare_rewriting(folder: Path, *, checkpoint: str, num_seeds: int, quick: bool) -> tuple[str, dict[str, float]]:
    """Trains and evaluates what is not there yet; returns the table and the figures by name. Raises UserError."""
    pairs = folder / "pairs.parquet"
    if not pairs.exists():
        run_module("examples.openmoji.rewriter_pairs", str(pairs), *(("--count", "400") if quick else ()))
    values: dict[str, dict[str, list[float]]] = {"as_written": {}, "rewritten": {}}
    for seed in range(num_seeds):
        out = folder / "rewriters" / str(seed)
        settings = (
            "--config",
            "examples/openmoji/rewriter.yaml",
            "--out",
            str(out),
            "--pairs",
            str(pairs),
            "--seed",
            str(seed),
        )
        print(f"rewriter, seed {seed}: {out}", flush=True)
        run_module("trainer.fit_rewriter", *settings, *(_QUICK if quick else ()))
        for arm, more in {"as_written": (), "rewritten": ("--rewrite.model", str(out / "rewriter"))}.items():
            found = _evaluate(folder / "evaluations" / arm / str(seed), checkpoint, more, seed=seed, quick=quick)
            for measure, value in found.items():
                values[arm].setdefault(measure, []).append(value)
    return table(values, against="as_written", head="prompts"), figures(values, against="as_written", prefix="T5")


def _evaluate(out: Path, checkpoint: str, more: tuple[str, ...], *, seed: int, quick: bool) -> dict[str, float]:
    """Scores by "category: metric, evaluator"; drawn and judged once."""
    summary = out / "summary.json"
    if not summary.exists():
        print(f"evaluating {out}", flush=True)
        prompts = f"--openmoji.prompts_per_category={1 if quick else 25}"
        common = ("--benchmark=examples.openmoji.benchmark", prompts, f"--seed={seed * _SEEDS_APART}")
        run_module("trainer.evaluate", f"--checkpoint={checkpoint}", f"--out={out}", *common, *more)
    scores = json.loads(summary.read_text(encoding="utf-8"))["scores"]
    chosen = [score for score in scores if score["category"] in _CATEGORIES]
    return {f"{score['category']}: {score['metric']}, {score['judge']}": score["value"] for score in chosen}
