"""Outcome of two recipes: the compute at which one reaches the other's end, by each measure; a table, and figures by name."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.staged_tables import shown

LOSS = "denoising loss"
METRICS = ("object", "all")
_FALLING = (LOSS,)
_FIGURES = {"loss": LOSS, **{metric: f"{metric}," for metric in METRICS}}
"""Figures of either recipe, and with what the names of their measures begin."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A training as it was measured."""

    flops: float
    measures: Mapping[str, float]


def outcome(paper: Sequence[Measured], cheap: Sequence[Sequence[Measured]]) -> tuple[str, dict[str, float | None]]:
    """Markdown and figures. `paper`: a training for each seed; `cheap`: its points, the shortest first, for each seed."""
    found = ratios(paper, cheap, falling=_FALLING)
    by_seed = [ratios([one], [points], falling=_FALLING) for one, points in zip(paper, cheap, strict=True)]
    ends = [points[-1] for points in cheap]
    figures: dict[str, float | None] = {"compute_ratio": worst(found)}
    figures |= {f"compute_ratio_{_name(measure)}": ratio for measure, ratio in found.items()}
    arms = {"paper": paper, "cheap": ends}
    for name, start in _FIGURES.items():
        figures |= {f"{name}_{arm}": statistics.fmean(_values(trained, start)) for arm, trained in arms.items()}
    for measure in (one for one in found if one != LOSS):
        figures |= {f"{_name(measure)}_{arm}": statistics.fmean(_values(trained, measure)) for arm, trained in arms.items()}
    figures |= {f"flops_{arm}": statistics.fmean(one.flops for one in trained) for arm, trained in arms.items()}
    figures["seeds"] = len(paper)
    return _table(paper, cheap, found, by_seed), figures


def compute_to_reach(points: Sequence[tuple[float, float]], target: float, *, falling: bool) -> float | None:
    """The compute from which on a curve of (compute, value) stays at the target or beyond it; None if it ends short of it.

    Between two points the value is a straight line over the logarithm of the compute. A curve that is never short of the target
    gives its first point: an upper bound. `falling`: less is better.
    """
    sign = -1.0 if falling else 1.0
    ahead = [sign * (value - target) for _, value in points]
    if ahead[-1] < 0:
        return None
    short = [index for index, by in enumerate(ahead) if by < 0]
    if not short:
        return points[0][0]
    index = short[-1]
    share = ahead[index] / (ahead[index] - ahead[index + 1])
    low, high = (math.log(points[at][0]) for at in (index, index + 1))
    return math.exp(low + share * (high - low))


def ratios(
    paper: Sequence[Measured], cheap: Sequence[Sequence[Measured]], *, falling: Sequence[str]
) -> dict[str, float | None]:
    """Share of the paper's compute, by measure, at which the mean curve of the cheap recipe reaches the paper's mean.

    `paper`: a training for each seed; `cheap`: its points, the shortest first, for each seed; less of `falling` measures is
    better.
    """
    found: dict[str, float | None] = {}
    whole = statistics.fmean(one.flops for one in paper)
    for measure in paper[0].measures:
        target = statistics.fmean(one.measures[measure] for one in paper)
        curve = [
            (statistics.fmean(one.flops for one in point), statistics.fmean(one.measures[measure] for one in point))
            for point in zip(*cheap, strict=True)
        ]
        reached = compute_to_reach(curve, target, falling=measure in falling)
        found[measure] = None if reached is None else reached / whole
    return found


def worst(found: Mapping[str, float | None]) -> float | None:
    """The largest of the ratios; None if one was not reached."""
    values = [value for value in found.values() if value is not None]
    return max(values) if len(values) == len(found) else None


def _values(trained: Sequence[Measured], start: str) -> list[float]:
    """Values of all measures whose names begin with this."""
    return [value for one in trained for measure, value in one.measures.items() if measure.startswith(start)]


def _name(measure: str) -> str:
    return "_".join(measure.replace(",", "").replace("-", "_").split())


def _table(
    paper: Sequence[Measured],
    cheap: Sequence[Sequence[Measured]],
    found: dict[str, float | None],
    by_seed: Sequence[dict[str, float | None]],
) -> str:
    """A row for each measure; after ± comes the standard deviation over the seeds."""
    whole = statistics.fmean(one.flops for one in paper)
    points = list(zip(*cheap, strict=True))
    shares = [statistics.fmean(one.flops for one in point) / whole for point in points]
    heads = ["measure", "paper", *(f"cheap at {share:.2f} of its compute" for share in shares), "compute ratio", "by seed"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for measure, ratio in found.items():
        digits = 4 if measure == LOSS else 3
        cells = [shown([one.measures[measure] for one in arm], digits=digits) for arm in (paper, *points)]
        seeds = ", ".join(_ratio(one[measure]) for one in by_seed)
        lines.append(f"| {' | '.join([measure, *cells, _ratio(ratio), seeds])} |")
    lines.append(f"\nThe worst of the ratios: {_ratio(worst(found))} of {whole:.3g} operations.")
    return "\n".join(lines) + "\n"


def _ratio(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.3f}"
