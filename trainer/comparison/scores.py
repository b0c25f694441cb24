"""Scores of trained networks by a benchmark, drawn and judged as by trainer.evaluate, in RUN_DIR/evaluations/<arm>/<seed>."""

import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from foundry.command_line import read_settings
from foundry.errors import UserError
from trainer.comparison.config import CompareConfig
from trainer.comparison.trainings import Training
from trainer.evaluation.config import EvaluateConfig
from trainer.evaluation.run import evaluate, open_benchmark
from trainer.evaluation.summary import SUMMARY_JSON

EVALUATIONS = "evaluations"
_GIVEN = ("benchmark", "out", "checkpoint", "images", "features")


@dataclass(frozen=True, kw_only=True)
class PromptScore:
    """A mean score of a trained network."""

    arm: str
    seed: int
    benchmark: str
    category: str
    judge: str
    metric: str
    num_images: int
    value: float
    held_out: float | None
    """The same over prompts of held-out combinations; None if there are none."""

    @property
    def name(self) -> str:
        """Name of the metric and the evaluator."""
        return f"{self.category}: {self.metric} by {self.judge}"


def check_benchmark(config: CompareConfig) -> None:
    """Raises UserError for a benchmark or an evaluator that is not there, before anything is trained."""
    if config.benchmark is not None:
        open_benchmark(_settings(config, out=Path(config.run_dir), checkpoint="not trained yet"))


def score(config: CompareConfig, training: Training) -> list[PromptScore]:
    """The scores of a training that is done; computed once. Raises UserError."""
    checkpoint = training.checkpoint
    if config.benchmark is None or checkpoint is None:
        return []
    out = Path(config.run_dir) / EVALUATIONS / training.arm / str(training.seed)
    with redirect_stdout(StringIO()):
        evaluation = _settings(config, out=out, checkpoint=str(checkpoint))
        if not (out / SUMMARY_JSON).exists():
            evaluate(evaluation)
    summary = json.loads((out / SUMMARY_JSON).read_text(encoding="utf-8"))
    return [_prompt_score(training, config.benchmark, one) for one in summary["scores"]]


def _prompt_score(training: Training, benchmark: str, score: dict[str, Any]) -> PromptScore:
    return PromptScore(
        arm=training.arm,
        seed=training.seed,
        benchmark=benchmark,
        **{name: score[name] for name in ("category", "judge", "metric", "num_images", "value", "held_out")},
    )


def _settings(config: CompareConfig, *, out: Path, checkpoint: str) -> EvaluateConfig:
    if given := [name for name in _GIVEN if name in config.evaluation]:
        raise UserError(f"{given[0]}: the comparison gives it itself: leave it out of evaluation", setting="evaluation")
    assert config.benchmark is not None
    try:
        defaults = EvaluateConfig(benchmark=config.benchmark, out=str(out), checkpoint=checkpoint)
    except ValueError as error:
        raise UserError(str(error), setting="benchmark") from None
    return read_settings(EvaluateConfig, config.evaluation, defaults=defaults, prog="python -m trainer.evaluate")
