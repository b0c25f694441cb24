"""Statistics of paired seeds: mean, spread, and whether an arm differs from base beyond noise.

In all arms a seed has the same initial weights, order of data and noise, so that arms are compared seed by seed: what a seed
does to both cancels out. The interval is Student's for the mean of the paired differences.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference of an arm to base, over the seeds that both have."""

    values: Mapping[int, float]
    """Values by seed: the arm's minus base's."""

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return fmean(self.values.values())

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for one."""
        return _spread(self.values)

    @property
    def half_width(self) -> float | None:
        """Half of the interval in which the mean lies with 95 % confidence; None for one seed."""
        factor = interval_factor(len(self.values))
        return None if self.spread is None or factor is None else factor * self.spread

    @property
    def is_beyond_noise(self) -> bool:
        """True where the interval does not hold zero."""
        return self.half_width is not None and abs(self.mean) > self.half_width


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure of an arm over its seeds."""

    values: Mapping[int, float]
    """Values by seed."""
    difference: Difference | None = None
    """None for base, where no seed is common, and where the figures of both mean different things."""

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return fmean(self.values.values())

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for one."""
        return _spread(self.values)


def estimate(values: Mapping[int, float], base: Mapping[int, float] | None) -> Estimate:
    """The estimate of values by seed, with the difference to base's, if that is given."""
    common = {seed: value - base[seed] for seed, value in values.items() if seed in base} if base is not None else {}
    return Estimate(values=values, difference=Difference(values=common) if common else None)


def interval_factor(num_seeds: int) -> float | None:
    """Standard deviations of paired differences on either side of their mean that the interval takes; None for one seed."""
    if num_seeds < 2:
        return None
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, num_seeds - 1)) / math.sqrt(num_seeds)


def what_seeds_tell(num_seeds: int) -> str:
    """Explanation of what this many seeds can and cannot show, in a sentence or two."""
    factor = interval_factor(num_seeds)
    if factor is None:
        return "One seed gives no interval: a difference may be that of the seed alone. Take three or more."
    more = 2 * num_seeds - 1
    of_more = interval_factor(more)
    return (
        f"With {num_seeds} seeds an interval reaches {factor:.2g} standard deviations of the paired differences to each side: "
        f"a smaller effect is within noise, which does not say that there is none. With {more} seeds it reaches {of_more:.2g}. "
        "Of 20 differences without a real effect, one is marked anyway."
    )


def _spread(values: Mapping[int, float]) -> float | None:
    return stdev(values.values()) if len(values) > 1 else None
