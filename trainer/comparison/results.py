"""Results of a comparison: a row for each validation and band in results.parquet, scores in scores.parquet, and figures.

results.parquet     losses of validations, with the images, operations and seconds until then
scores.parquet      scores of the benchmark at the end of each training, where one was named
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foundry.storage.folder import new_file
from trainer.comparison.arms import BASE, Arm
from trainer.comparison.plan import ArmPlan
from trainer.comparison.scores import PromptScore
from trainer.comparison.statistics import Estimate, estimate
from trainer.comparison.trainings import Training, row_seconds
from trainer.monitoring.run_folder import read_metrics
from trainer.monitoring.validation import TIMESTEPS

RESULTS, SCORES, SUMMARY = "results.parquet", "scores.parquet", "summary.json"
ALL = "all"
"""Instead of a band: over all timesteps."""

RESULT_SCHEMA = pa.schema(
    [
        ("arm", pa.string()),
        ("seed", pa.int64()),
        ("images", pa.int64()),  # seen until the validation
        ("flops", pa.float64()),  # of them, by the planner
        ("seconds", pa.float64()),  # of the training loop until then
        ("band", pa.string()),  # of timesteps, as 0-250; all: over all of them
        ("loss", pa.float64()),
        ("is_last", pa.bool_()),  # whether it is the one at the end of the training
        ("memory_bytes", pa.int64()),  # peak of the whole training: of the GPU, else of the process
        ("parameters", pa.int64()),  # that are trained
    ]
)
SCORE_SCHEMA = pa.schema(
    [
        ("arm", pa.string()),
        ("seed", pa.int64()),
        ("benchmark", pa.string()),
        ("category", pa.string()),
        ("judge", pa.string()),
        ("metric", pa.string()),
        ("num_images", pa.int64()),
        ("value", pa.float64()),
        ("held_out", pa.float64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of all arms."""

    kind: Literal["loss", "score", "cost"]
    name: str
    """The band of a loss, the category, metric and judge of a score, or the cost."""
    estimates: Mapping[str, Estimate]
    """Estimates by arm, as far as there are values."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A comparison, as far as it is done."""

    folder: Path
    """Holds results.parquet, summary.json, summary.md and page.html."""
    plans: Sequence[ArmPlan]
    """The arms, base first."""
    equal: str
    """The compute that arms have alike: flops, seconds or images."""
    seeds: Sequence[int]
    is_done: bool = False
    """False where it was told to stop before."""
    rows: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """Rows of results.parquet."""
    scores: Sequence[PromptScore] = ()
    diverged: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """Reasons, by arm and seed, why a training has no end."""

    @property
    def results(self) -> Path:
        """The table of losses and costs."""
        return self.folder / RESULTS

    @property
    def figures(self) -> list[Figure]:
        """Losses by band at the end of training, scores, and costs."""
        return [*_losses(self), *_scores(self), *_costs(self)]


def training_rows(plan: ArmPlan, training: Training) -> Iterator[dict[str, Any]]:
    """The rows of a training that is over."""
    metrics = read_metrics(training.folder)
    steps = sorted((row for row in metrics if row["kind"] == "train"), key=lambda row: int(row["images_seen"]))
    seconds = np.cumsum([row_seconds(row, batch_size=plan.opened.batch_size) for row in steps])
    ends = [row["images_seen"] for row in steps]
    work, memory = plan.opened.work(plan.images), max((row["memory_bytes"] for row in steps), default=None)
    for row in metrics:
        if row["kind"] != "validation":
            continue
        images = row["images_seen"]
        common = {
            "arm": training.arm,
            "seed": training.seed,
            "images": images,
            "flops": work.flops(images),
            "seconds": float(np.interp(images, [0, *ends], [0.0, *seconds])),
            "is_last": images == training.config.images,
            "memory_bytes": memory,
            "parameters": plan.opened.num_parameters,
        }
        losses = {ALL: row["loss"], **dict(zip(band_names(len(row["bands"])), row["bands"], strict=True))}
        yield from (common | {"band": band, "loss": loss} for band, loss in losses.items() if loss is not None)


def band_names(number: int) -> list[str]:
    """The names of this many equal bands of timesteps, from low to high."""
    width = TIMESTEPS // number
    return [f"{index * width}-{(index + 1) * width}" for index in range(number)]


def write_results(compared: Compared) -> None:
    """Writes both tables and summary.json, each complete or not at all."""
    with new_file(compared.results) as partial:
        pq.write_table(pa.Table.from_pylist(list(compared.rows), schema=RESULT_SCHEMA), partial)
    if compared.scores:
        with new_file(compared.folder / SCORES) as partial:
            pq.write_table(pa.Table.from_pylist([asdict(one) for one in compared.scores], schema=SCORE_SCHEMA), partial)
    summary = {
        "equal": compared.equal,
        "seeds": list(compared.seeds),
        "is_done": compared.is_done,
        "arms": {plan.arm.name: _arm_record(plan) for plan in compared.plans},
        "figures": [_figure_record(figure) for figure in compared.figures],
        "diverged": [{"arm": arm, "seed": seed, "reason": reason} for (arm, seed), reason in compared.diverged.items()],
    }
    with new_file(compared.folder / SUMMARY) as partial:
        partial.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def loss_is_comparable(arm: Arm, base: Arm, *, band: str) -> bool:
    """Whether a loss of the arm means what base's does: that of another objective, or at other timesteps, does not.

    Within a band the distribution of timesteps hardly matters.
    """
    ours, theirs = arm.config.objective, base.config.objective
    if band == ALL:
        return ours == theirs
    return (ours.name, ours.learned_variance) == (theirs.name, theirs.learned_variance)


def _arm_record(plan: ArmPlan) -> dict[str, Any]:
    return {
        "changes": dict(plan.arm.changes),
        "images": plan.images,
        "flops": plan.opened.work(plan.images).flops(),
        "parameters": plan.opened.num_parameters,
        "same_start": plan.opened.same_start,
        "timed_step_s": plan.step_s,
    }


def _figure_record(figure: Figure) -> dict[str, Any]:
    def record(found: Estimate) -> dict[str, Any]:
        difference = found.difference and {
            "values": dict(found.difference.values),
            "mean": found.difference.mean,
            "spread": found.difference.spread,
            "half_width": found.difference.half_width,
            "is_beyond_noise": found.difference.is_beyond_noise,
        }
        return {"values": dict(found.values), "mean": found.mean, "spread": found.spread, "difference": difference}

    estimates = {arm: record(found) for arm, found in figure.estimates.items()}
    return {"kind": figure.kind, "name": figure.name, "arms": estimates}


def _losses(compared: Compared) -> Iterator[Figure]:
    last = [row for row in compared.rows if row["is_last"]]
    arms = {plan.arm.name: plan.arm for plan in compared.plans}
    for band in dict.fromkeys(row["band"] for row in last):
        values = _by_arm((row["arm"], row["seed"], row["loss"]) for row in last if row["band"] == band)
        comparable = {name for name, arm in arms.items() if loss_is_comparable(arm, arms[BASE], band=band)}
        yield Figure(kind="loss", name=band, estimates=_estimates(values, comparable))


def _scores(compared: Compared) -> Iterator[Figure]:
    for name in dict.fromkeys(one.name for one in compared.scores):
        values = _by_arm((one.arm, one.seed, one.value) for one in compared.scores if one.name == name)
        yield Figure(kind="score", name=name, estimates=_estimates(values, set(values)))


def _costs(compared: Compared) -> Iterator[Figure]:
    last = [row for row in compared.rows if row["is_last"] and row["band"] == ALL]
    for name in ("images", "flops", "seconds", "memory_bytes", "parameters"):
        values = _by_arm((row["arm"], row["seed"], row[name]) for row in last if row[name] is not None)
        yield Figure(kind="cost", name=name, estimates=_estimates(values, set(values)))


def _by_arm(rows: Iterator[tuple[str, int, float]]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for arm, seed, value in rows:
        found.setdefault(arm, {})[seed] = value
    return found


def _estimates(values: Mapping[str, Mapping[int, float]], comparable: set[str]) -> dict[str, Estimate]:
    base = values.get(BASE)
    return {arm: estimate(own, base if arm in comparable - {BASE} else None) for arm, own in values.items()}
