"""What an evaluation comes to: a row for each image and metric, and means by category and judge beside their ceilings."""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.new_files import new_file
from trainer.evaluation import Benchmark
from trainer.evaluation_scores import GENERATED, TRUE, Distance, Judged

if TYPE_CHECKING:
    from trainer.validation import ValidationLoss

RESULTS, SUMMARY_JSON, SUMMARY_MD = "results.parquet", "summary.json", "summary.md"
ALL = "all prompts"

SCHEMA = pa.schema(
    [
        ("benchmark", pa.string()),
        ("images", pa.string()),  # generated or true
        ("category", pa.string()),
        ("prompt", pa.string()),
        ("held_out", pa.bool_()),
        ("seed", pa.int64()),  # null for true images
        ("judge", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("seen", pa.string()),  # what the judge saw
    ]
)


@dataclass(frozen=True, kw_only=True)
class Score:
    """The mean of a metric over the images of a category, by one judge."""

    category: str
    """ALL: over the images of every category."""
    judge: str
    metric: str
    num_images: int
    value: float
    held_out: float | None
    """Over the prompts of held-out combinations; None where there are none."""
    ceiling: float | None
    """What the same judge finds of true images of the same prompts; None where there are none."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """An evaluation in figures."""

    benchmark: str
    scores: tuple[Score, ...]
    """The chosen metric of each category, then every metric over all prompts."""
    distances: tuple[Distance, ...]
    validation_loss: "ValidationLoss | None" = None


def summarise(
    benchmark: Benchmark, judged: Sequence[Judged], distances: Sequence[Distance], loss: "ValidationLoss | None" = None
) -> Summary:
    """Means over images."""
    scores = []
    for category in dict.fromkeys(prompt.category for prompt in benchmark.prompts):
        own = [one for one in judged if one.prompt.category == category]
        scores += [_score(own, category, judge, benchmark.metric_of[category]) for judge in benchmark.judges]
    metrics = dict.fromkeys(metric for one in judged for metric in one.verdict.values)
    scores += [_score(judged, ALL, judge, metric) for metric in metrics for judge in benchmark.judges]
    return Summary(
        benchmark=benchmark.name,
        scores=tuple(score for score in scores if score),
        distances=tuple(distances),
        validation_loss=loss,
    )


def markdown(summary: Summary) -> str:
    """The figures as Markdown tables."""
    head = "| {} | judge | images | score | held-out | ceiling |\n|---|---|---|---|---|---|\n"
    parts = []
    for title, over_all in (("category (metric)", False), ("all prompts, by metric", True)):
        lines = [
            f"| {one.metric if over_all else f'{one.category} ({one.metric})'} | {one.judge} | {one.num_images} "
            f"| {_shown(one.value)} | {_shown(one.held_out)} | {_shown(one.ceiling)} |"
            for one in summary.scores
            if (one.category == ALL) == over_all
        ]
        parts.append(head.format(title) + "\n".join(lines) + "\n")
    distances = [
        f"Fréchet distance by {one.embedding}: {one.value:.2f} over {one.num_images} images "
        f"(true images of other prompts: {one.between_true:.2f})\n"
        for one in summary.distances
    ]
    loss = [f"{summary.validation_loss}\n"] if summary.validation_loss else []
    return "\n".join([*parts, *distances, *loss])


def write_results(out: Path, judged: Sequence[Judged], summary: Summary) -> None:
    """results.parquet, summary.json and summary.md, each complete or not at all."""
    with new_file(out / RESULTS) as partial:
        pq.write_table(pa.Table.from_pylist(list(_rows(summary.benchmark, judged)), schema=SCHEMA), partial)
    with new_file(out / SUMMARY_JSON) as partial:
        partial.write_text(json.dumps(dataclasses.asdict(summary), indent=2) + "\n", encoding="utf-8")
    with new_file(out / SUMMARY_MD) as partial:
        partial.write_text(markdown(summary), encoding="utf-8")


def _rows(benchmark: str, judged: Iterable[Judged]) -> Iterable[dict[str, Any]]:
    for one in judged:
        for metric, value in one.verdict.values.items():
            yield {
                "benchmark": benchmark,
                "images": one.images,
                "category": one.prompt.category,
                "prompt": one.prompt.text,
                "held_out": one.prompt.held_out,
                "seed": one.seed,
                "judge": one.judge,
                "metric": metric,
                "value": value,
                "seen": one.verdict.seen,
            }


def _score(judged: Iterable[Judged], category: str, judge: str, metric: str) -> Score | None:
    """None where the judge has no such figure."""
    values: dict[str, list[float]] = defaultdict(list)
    for one in judged:
        if one.judge == judge and metric in one.verdict.values:
            value = one.verdict.values[metric]
            values[one.images].append(value)
            if one.images == GENERATED and one.prompt.held_out:
                values["held_out"].append(value)
    if not values[GENERATED]:
        return None
    return Score(
        category=category,
        judge=judge,
        metric=metric,
        num_images=len(values[GENERATED]),
        value=fmean(values[GENERATED]),
        held_out=fmean(values["held_out"]) if values["held_out"] else None,
        ceiling=fmean(values[TRUE]) if values[TRUE] else None,
    )


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
