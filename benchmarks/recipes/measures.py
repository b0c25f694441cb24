"""Measures of a trained checkpoint: denoising loss, and both evaluators' scores over held-out prompts; each kept once taken."""

import json
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.recipes.compute import training_flops
from benchmarks.recipes.config import CheapRecipeConfig
from benchmarks.recipes.denoising import denoising_loss
from benchmarks.recipes.outcome import LOSS, METRICS, Measured
from benchmarks.recipes.trainings import Trained
from benchmarks.staged_judgement import judge_checkpoint
from benchmarks.staged_world import features_folder
from foundry.storage.folder import new_file
from trainer.evaluation.summary import RESULTS, SUMMARY_JSON

_SEEDS_APART = 1_000_000
"""Between the first images of two seeds: each image takes the next seed, so that no noise is that of another image."""


def measure(trained: Trained, config: CheapRecipeConfig, *, arm: str, seed: int) -> Measured:
    """Compute and measures of a training. Validation is that of the alignment's features: all scenes, for either recipe.

    Raises UserError if the evaluation fails.
    """
    out = config.folder / "judgements" / arm / str(seed)
    loss = _loss(trained.checkpoint, out / "loss.json", config)
    noise, kinds = f"--seed={seed * _SEEDS_APART}", f"--openmoji.num_kinds={config.num_kinds}"
    if not (out / "person" / SUMMARY_JSON).exists():
        arguments = [noise, kinds, "--openmoji.single_objects=true"]
        judge_checkpoint(str(trained.checkpoint), out / "person", config, style="person", arguments=arguments)
    return Measured(flops=training_flops(trained.runs), measures={**loss, **held_out_scores(out / "person")})


def held_out_scores(evaluation: Path) -> dict[str, float]:
    """Mean over generated images of held-out prompts, by "metric, evaluator"."""
    rows = pq.read_table(evaluation / RESULTS).to_pylist()
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["images"] == "generated" and row["held_out"] and row["metric"] in METRICS:
            found.setdefault(f"{row['metric']}, {row['judge']}", []).append(row["value"])
    return {name: sum(values) / len(values) for name, values in sorted(found.items())}


def _loss(checkpoint: Path, kept: Path, config: CheapRecipeConfig) -> dict[str, float]:
    if not kept.exists():
        features = str(features_folder(config, "alignment"))
        found = denoising_loss(str(checkpoint), features, num_images=config.validation_images, caption="dense")
        kept.parent.mkdir(parents=True, exist_ok=True)
        with new_file(kept) as partial:
            partial.write_text(json.dumps(asdict(found)) + "\n", encoding="utf-8")
    loss: float = json.loads(kept.read_text(encoding="utf-8"))["loss"]
    return {LOSS: loss}
