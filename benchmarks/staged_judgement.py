"""Judgements of the staged trainings: `trainer.evaluate` on each final checkpoint, in a folder each.

It is called every time: it finds what it has done, and refuses a folder that holds the judgement of another checkpoint.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from benchmarks.commands import run_module
from benchmarks.staged_config import StagedTrainingConfig

Style = Literal["person", "dense", "alt_text"]
STYLES: dict[Style, str] = {
    "person": "as a person writes",
    "dense": "as llava-mini describes",
    "alt_text": "as the alt text",
}
METRICS = ("object", "place", "background", "all")
WORLD_METRICS = ("object", "size", "place", "background", "relation", "count", "all")
"""Metrics of the whole small world: relation and count need several objects."""
_ALL_PROMPTS = "all prompts"
_SEEDS_APART = 1_000_000
"""Between the first images of two seeds: each image takes the next seed, so that no noise is that of another image."""


class JudgementConfig(Protocol):
    """Settings that determine an evaluation."""

    @property
    def prompts_per_category(self) -> int:
        """Prompts of each category and split."""

    @property
    def guidance_scale(self) -> float:
        """Guidance scale of the images."""


def judge(run: Path, config: StagedTrainingConfig, style: Style) -> dict[str, float]:
    """Scores of a run's newest checkpoint, over all prompts of a style, by "metric, judge". Raises UserError.

    The noise is the same for all arms of a seed, and another for each seed.
    """
    from trainer.monitoring.run_folder import newest_checkpoint

    arm, seed = run.parts[-3], run.parts[-2]
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None, "it was trained"
    noise = f"--seed={int(seed) * _SEEDS_APART}"
    world = [f"--openmoji.num_kinds={config.num_kinds}", "--openmoji.single_objects=true"]
    out = config.folder / "judgements" / arm / seed / style
    return judge_checkpoint(str(checkpoint), out, config, style=style, arguments=[noise, *world])


def judge_checkpoint(
    checkpoint: str,
    out: Path,
    config: JudgementConfig,
    *,
    style: Style,
    arguments: list[str],
    metrics: Sequence[str] = METRICS,
) -> dict[str, float]:
    """The same for any checkpoint, in a folder of choice, by some metrics; `arguments` are more of trainer.evaluate's."""
    summary = out / "summary.json"
    if not summary.exists():
        print(f"judging {checkpoint} by prompts {STYLES[style]}", flush=True)
    run_module(*_command(style, config), f"--checkpoint={checkpoint}", f"--out={out}", *arguments)
    return _scores(json.loads(summary.read_text(encoding="utf-8")), metrics)


def frechet_distance(out: Path) -> dict[str, float]:
    """Fréchet distance to rendered scenes of the same prompts, from an existing evaluation."""
    (distance,) = json.loads((out / "summary.json").read_text(encoding="utf-8"))["distances"]
    return {"Fréchet distance": distance["value"]}


def style_share(checkpoint: str, out: Path, config: StagedTrainingConfig) -> dict[str, float]:
    """The share of images of bare alt texts, which leave it open, in whose description by a judge the style's word occurs."""
    import pyarrow.parquet as pq

    judge_checkpoint(checkpoint, out, config, style="alt_text", arguments=[])
    rows = pq.read_table(out / "results.parquet", columns=["images", "judge", "metric", "seen"]).to_pylist()
    seen: dict[str, list[bool]] = {}
    for row in rows:
        if row["images"] == "generated" and row["metric"] == "object":
            seen.setdefault(row["judge"], []).append(config.style in row["seen"])
    return {f"{config.style}, {judge}": sum(found) / len(found) for judge, found in seen.items()}


def _command(style: Style, config: JudgementConfig) -> list[str]:
    common = [
        f"--openmoji.prompts_per_category={config.prompts_per_category}",
        f"--sampling.guidance_scale={config.guidance_scale}",
    ]
    if style == "alt_text":
        return ["trainer.evaluate", "--benchmark=benchmarks.staged_alt_text", *common]
    return ["trainer.evaluate", "--benchmark=examples.openmoji.benchmark", f"--openmoji.style={style}", *common]


def _scores(summary: dict[str, Any], metrics: Sequence[str]) -> dict[str, float]:
    over_all = [score for score in summary["scores"] if score["category"] == _ALL_PROMPTS]
    wanted = [(metric, score) for metric in metrics for score in over_all if score["metric"] == metric]
    return {f"{metric}, {score['judge']}": score["value"] for metric, score in wanted}
