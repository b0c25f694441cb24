"""Figures of several seeds as Markdown and as plain numbers: mean, spread, and differences seed by seed."""

import statistics
from collections.abc import Mapping, Sequence

Values = Mapping[str, Mapping[str, Sequence[float]]]
"""Values of each arm and measure, one for each seed, in the order of the seeds. Only the arm that others are held against must
have every measure."""


def table(values: Values, *, against: str, head: str) -> str:
    """A row for each measure: every arm, then what each differs from the arm `against`, seed by seed.

    After ± comes the standard deviation over the seeds, of the values or of the differences; – is what an arm has not.
    """
    others = [arm for arm in values if arm != against]
    columns = [*(_words(arm) for arm in values), *(f"{_words(arm)} - {_words(against)}" for arm in others)]
    lines = [f"| {head} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for measure in values[against]:
        digits = 4 if "loss" in measure else 3
        cells = [shown(values[arm].get(measure, ()), digits=digits) for arm in values]
        pairs = [differences(values, arm, against, measure) if measure in values[arm] else () for arm in others]
        cells += [shown(found, digits=digits, sign="+") for found in pairs]
        lines.append(f"| {measure} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figures(values: Values, *, against: str, prefix: str) -> dict[str, float]:
    """The same as numbers by name: mean, spread (with two seeds or more), and the mean and spread of the differences."""
    found: dict[str, float] = {}
    for arm, measures in values.items():
        for measure, seeds in measures.items():
            name = "_".join([prefix, arm, *measure.replace(",", "").replace(":", "").replace("-", "_").split()])
            found |= _mean_and_spread(name, seeds)
            if arm != against:
                found |= _mean_and_spread(f"{name}_minus_{against}", differences(values, arm, against, measure))
    return found


def differences(values: Values, arm: str, against: str, measure: str) -> list[float]:
    """Differences of the pairs: one for each seed."""
    pairs = zip(values[arm][measure], values[against][measure], strict=True)
    return [one - other for one, other in pairs]


def _mean_and_spread(name: str, seeds: Sequence[float]) -> dict[str, float]:
    spread = {f"{name}_spread": statistics.stdev(seeds)} if len(seeds) > 1 else {}
    return {name: statistics.fmean(seeds)} | spread


def shown(seeds: Sequence[float], *, digits: int, sign: str = "") -> str:
    """Mean and, of several, ± standard deviation; – of none."""
    if not seeds:
        return "–"
    mean = f"{statistics.fmean(seeds):{sign}.{digits}f}"
    return f"{mean} ± {statistics.stdev(seeds):.{digits}f}" if len(seeds) > 1 else mean


def _words(name: str) -> str:
    return name.replace("_", " ")
