"""The summary of an evaluation: a row for each image and metric, and means by category and judge with their ceilings."""

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from foundry.storage.folder import new_file
from trainer.evaluation.benchmark import ALL, OVERALL, Benchmark, DrawnPrompts, JudgeSource, Published, Score, SetMetric
from trainer.evaluation.judging import GENERATED, TRUE, Distance, Judged

if TYPE_CHECKING:
    from trainer.monitoring.validation import ValidationLoss

RESULTS, SUMMARY_JSON, SUMMARY_MD = "results.parquet", "summary.json", "summary.md"
_HELD_OUT = "held out"

SCHEMA = pa.schema(
    [
        ("benchmark", pa.string()),
        ("images", pa.string()),  # generated or true
        ("category", pa.string()),
        ("prompt", pa.string()),
        ("rewritten_prompt", pa.string()),  # what generated images were drawn of; null: the prompt as written
        ("held_out", pa.bool_()),
        ("seed", pa.int64()),  # null for true images
        ("judge", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("seen", pa.string()),  # what the judge saw
        ("published", pa.float64()),  # the figure of another model for this category and metric
        ("comparable", pa.string()),  # whether ours can be compared with it, and why not
    ]
)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """An evaluation in figures."""

    benchmark: str
    scores: tuple[Score, ...]
    """The chosen metric of each category, then every metric over all prompts, then what the benchmark makes of them."""
    distances: tuple[Distance, ...]
    judges: Mapping[str, str]
    """Versions of judges and set metrics, by name: weights, thresholds, precision, request."""
    validation_loss: "ValidationLoss | None" = None
    prompts: DrawnPrompts = field(default_factory=DrawnPrompts)
    """Whether prompts were rewritten, and into what."""


def summarise(
    benchmark: Benchmark,
    judged: Sequence[Judged],
    *,
    set_scores: Sequence[Score],
    distances: Sequence[Distance],
    loss: "ValidationLoss | None" = None,
    prompts: DrawnPrompts | None = None,
) -> Summary:
    """Means over images, the benchmark's overall figures, and published figures to compare them with."""
    judges = [*benchmark.judges, *benchmark.derived]
    of_categories = []
    for category in dict.fromkeys(prompt.category for prompt in benchmark.prompts):
        own = [one for one in judged if one.prompt.category == category]
        of_categories += [_score(own, category, judge, benchmark.metric_of[category]) for judge in judges]
    found = [score for score in of_categories if score]
    metrics = dict.fromkeys(metric for one in judged for metric in one.verdict.values)
    over_all = [_score(judged, ALL, judge, metric) for metric in metrics for judge in judges]
    overall = benchmark.overall(found) if benchmark.overall else ()
    scores = [*found, *(score for score in over_all if score), *set_scores, *overall]
    sources: Mapping[str, JudgeSource | SetMetric] = {**benchmark.judges, **benchmark.set_metrics}
    return Summary(
        benchmark=benchmark.name,
        scores=tuple(_with_published(scores, benchmark)),
        distances=tuple(distances),
        judges={name: source.version for name, source in sources.items()},
        validation_loss=loss,
        prompts=prompts or DrawnPrompts(),
    )


def markdown(summary: Summary) -> str:
    """The figures as Markdown tables."""
    parts = []
    for columns, rows in score_tables(summary):
        lines = [f"| {' | '.join(map(_shown, row))} |\n" for row in (columns, *rows)]
        parts.append("".join([lines[0], "|---" * len(columns) + "|\n", *lines[1:]]))
    distances = [
        f"Fréchet distance by {one.embedding}: {one.value:.2f} over {one.num_images} images "
        f"(true images of other prompts: {one.between_true:.2f})\n"
        for one in summary.distances
    ]
    return "\n".join([*parts, *distances, *(f"{remark}\n" for remark in remarks(summary))])


def remarks(summary: Summary) -> list[str]:
    """Remarks below the tables: whether prompts were rewritten, the sources of published figures, and the validation loss."""
    sources = dict.fromkeys(one.published.source for one in summary.scores if one.published)
    loss = [str(summary.validation_loss)] if summary.validation_loss else []
    return [summary.prompts.statement, *(f"published: {source}" for source in sources), *loss]


def score_tables(summary: Summary) -> list[tuple[list[str], list[list[Any]]]]:
    """Columns and rows of the scores of categories, and of those over all."""
    over_all = [one for one in summary.scores if one.category in (ALL, OVERALL)]
    of_categories = [one for one in summary.scores if one not in over_all]
    tables = [("category (metric)", of_categories), ("all prompts, by metric", over_all)]
    return [_score_table(title, scores) for title, scores in tables if scores]


def comparability(published: Published) -> str:
    """Says whether our figure can be compared with it, and why not."""
    if published.differences:
        return f"no: {'; '.join(published.differences)}"
    return f"with care: {'; '.join(published.reservations)}" if published.reservations else "yes"


def write_results(out: Path, judged: Sequence[Judged], summary: Summary) -> None:
    """results.parquet, summary.json and summary.md, each complete or not at all."""
    with new_file(out / RESULTS) as partial:
        pq.write_table(pa.Table.from_pylist(list(_rows(summary, judged)), schema=SCHEMA), partial)
    with new_file(out / SUMMARY_JSON) as partial:
        partial.write_text(json.dumps(dataclasses.asdict(summary), indent=2) + "\n", encoding="utf-8")
    with new_file(out / SUMMARY_MD) as partial:
        partial.write_text(markdown(summary), encoding="utf-8")


def _rows(summary: Summary, judged: Iterable[Judged]) -> Iterable[dict[str, Any]]:
    published = {(one.category, one.metric): one.published for one in summary.scores if one.published}
    for one in judged:
        for metric, value in one.verdict.values.items():
            figure = published.get((one.prompt.category, metric))
            yield {
                "benchmark": summary.benchmark,
                "images": one.images,
                "category": one.prompt.category,
                "prompt": one.prompt.text,
                "rewritten_prompt": summary.prompts.rewritten.get(one.prompt.text) if one.images == GENERATED else None,
                "held_out": one.prompt.held_out,
                "seed": one.seed,
                "judge": one.judge,
                "metric": metric,
                "value": value,
                "seen": one.verdict.seen,
                "published": figure and figure.value,
                "comparable": figure and comparability(figure),
            }


def _score_table(title: str, scores: Sequence[Score]) -> tuple[list[str], list[list[Any]]]:
    """The table without the columns that would be empty."""
    columns = [title, "judge", "images", "score", "held-out images", "held-out", "ceiling", "published", "comparable"]
    rows = [
        [
            one.metric if one.category == ALL else f"{one.category} ({one.metric})",
            one.judge,
            one.num_images,
            _with_error(one.value, one.standard_error),
            one.num_held_out or None,
            None if one.held_out is None else _with_error(one.held_out, one.held_out_error),
            one.ceiling,
            one.published and one.published.value,
            one.published and comparability(one.published),
        ]
        for one in scores
    ]
    kept = [index for index in range(len(columns)) if any(row[index] is not None for row in rows)]
    return [columns[index] for index in kept], [[row[index] for index in kept] for row in rows]


def _with_published(scores: Iterable[Score], benchmark: Benchmark) -> Iterator[Score]:
    """Scores with the published figures of the same category and metric, and how they compare."""
    published = {(one.category, one.metric): one for one in benchmark.published}
    wanted = Counter(prompt.category for prompt in benchmark.prompts)
    wanted[OVERALL] = len(benchmark.prompts)
    differences = benchmark.differences_of_answers()
    for score in scores:
        figure = published.get((score.category, score.metric))
        num_wanted = wanted[score.category] * benchmark.num_images_per_prompt
        if figure:
            lacking = (f"a score for {score.num_images} of {num_wanted} images",) if score.num_images < num_wanted else ()
            figure = dataclasses.replace(figure, differences=(*figure.differences, *differences, *lacking))
        yield dataclasses.replace(score, published=figure)


def _score(judged: Iterable[Judged], category: str, judge: str, metric: str) -> Score | None:
    """None if the judge has no such figure."""
    found: dict[str, dict[str, list[float]]] = {
        GENERATED: defaultdict(list),
        TRUE: defaultdict(list),
        _HELD_OUT: defaultdict(list),
    }
    for one in judged:
        if one.judge == judge and metric in one.verdict.values:
            held_out = one.images == GENERATED and one.prompt.held_out
            for images in (one.images, *([_HELD_OUT] if held_out else [])):
                found[images][one.prompt.text].append(one.verdict.values[metric])
    generated, true, of_held_out = (list(chain.from_iterable(of_prompts.values())) for of_prompts in found.values())
    if not generated:
        return None
    return Score(
        category=category,
        judge=judge,
        metric=metric,
        num_images=len(generated),
        value=fmean(generated),
        standard_error=_standard_error(found[GENERATED]),
        held_out=fmean(of_held_out) if of_held_out else None,
        num_held_out=len(of_held_out),
        held_out_error=_standard_error(found[_HELD_OUT]),
        ceiling=fmean(true) if true else None,
    )


def _standard_error(of_prompts: Mapping[str, Sequence[float]]) -> float | None:
    """Standard error of the mean over all images, by the spread of the prompts' means; None for fewer than two prompts."""
    means = [fmean(values) for values in of_prompts.values()]
    return stdev(means) / len(means) ** 0.5 if len(means) > 1 else None


def _with_error(value: float, error: float | None) -> float | str:
    return value if error is None else f"{value:.3f} ± {error:.3f}"


def _shown(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:.3f}"
    return "" if cell is None else str(cell)
