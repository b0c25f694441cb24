"""Concept density: how many nouns, and how many different ones, a body of captions holds. Pure functions of noun counts.

Source: PixArt-alpha (arXiv 2310.00426), Table 1. DN is the number of distinct nouns, VN that of the valid ones, which appear
more than 10 times. Both grow with the corpus, and VN's threshold is absolute, so bodies of different size are compared by
rarefaction: the DN and VN that a random sample of equally many captions is expected to have.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VALID_ABOVE = 10
"""A noun is valid when it appears strictly more often."""

_SERIES_FROM = 16
"""Smallest x for which three terms of Stirling's series are exact to 12 digits."""

VIEWS = {
    "written": "As written, all nouns",
    "written_without_meta": "As written, without meta-nouns",
    "t5": "As T5 reads it, all nouns",
    "t5_without_meta": "As T5 reads it, without meta-nouns",
}
"""The ways to count, and what the table calls them."""


@dataclass(frozen=True, kw_only=True)
class ConceptDensity:
    """The figures of one row of Table 1. VN and DN are whole numbers, except where they are expected values of a sample."""

    valid_nouns: float
    distinct_nouns: float
    total_nouns: int
    num_captions: int

    @property
    def ratio(self) -> float:
        """VN / DN, 0 if there are no nouns."""
        return self.valid_nouns / self.distinct_nouns if self.distinct_nouns else 0.0

    @property
    def nouns_per_caption(self) -> float:
        """The mean, which is also that per image: there is one caption to an image in a row."""
        return self.total_nouns / self.num_captions if self.num_captions else 0.0


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A row of the paper's table, rounded as printed there; K is thousands, M millions."""

    name: str
    vn_dn: str
    ratio: float
    total_nouns: str
    nouns_per_image: float


# Source: PixArt-alpha, Table 1. That each row is over about 11.2 million images is total nouns / nouns per image.
PAPER_TABLE = (
    PaperRow(name="LAION (alt text)", vn_dn="210K / 2461K", ratio=0.085, total_nouns="72.0M", nouns_per_image=6.4),
    PaperRow(name="LAION-LLaVA", vn_dn="85K / 646K", ratio=0.133, total_nouns="233.9M", nouns_per_image=20.9),
    PaperRow(name="SAM-LLaVA", vn_dn="23K / 124K", ratio=0.186, total_nouns="327.9M", nouns_per_image=29.3),
    PaperRow(name="Internal", vn_dn="152K / 582K", ratio=0.261, total_nouns="136.6M", nouns_per_image=12.2),
)


def density_of(counts: "NDArray[np.int64]", *, num_captions: int) -> ConceptDensity:
    """The density from the occurrences of each noun, (distinct nouns,); zeros are nouns that do not occur."""
    return ConceptDensity(
        valid_nouns=int((counts > VALID_ABOVE).sum()),
        distinct_nouns=int((counts > 0).sum()),
        total_nouns=int(counts.sum()),
        num_captions=num_captions,
    )


def rarefied(counts: "NDArray[np.int64]", *, num_captions: int, sample_size: int) -> ConceptDensity:
    """The density expected of `sample_size` of the captions; exact at full size. Raises ValueError for a larger sample.

    Individual-based: the sample takes the same share of the noun occurrences, drawn without replacement, so that a noun's
    occurrences in it are hypergeometric. Source: Hurlbert 1971, "The nonconcept of species diversity".
    """
    import numpy as np

    if not 0 <= sample_size <= num_captions:
        raise ValueError(f"a sample of {sample_size} cannot be drawn from {num_captions} captions")
    total = int(counts.sum())
    drawn = round(total * sample_size / num_captions) if num_captions else 0
    if drawn == total:
        return density_of(counts, num_captions=sample_size)
    sizes, times = np.unique(counts[counts > 0], return_counts=True)
    probability = _probabilities(sizes, total=total, drawn=drawn)  # (sizes, VALID_ABOVE + 1)
    return ConceptDensity(
        valid_nouns=float((times * (1 - probability.sum(axis=1)).clip(0, 1)).sum()),
        distinct_nouns=float((times * (1 - probability[:, 0]).clip(0, 1)).sum()),
        total_nouns=drawn,
        num_captions=sample_size,
    )


def _probabilities(sizes: "NDArray[np.int64]", *, total: int, drawn: int) -> "NDArray[np.float64]":
    """P(k of a noun's occurrences are drawn), hypergeometric, for each size and k = 0 … VALID_ABOVE: (sizes, k).

    Written out with log-gamma, since scipy.stats.hypergeom sums its tails over as many terms as are drawn.
    """
    import numpy as np

    size = sizes[:, None].astype(np.float64)
    k = np.arange(VALID_ABOVE + 1, dtype=np.float64)[None, :]
    possible = (k <= size) & (k <= drawn) & (size - k <= total - drawn)
    inside = np.where(possible, k, 0.0)  # keeps log-gamma off its poles; masked below
    rest = np.where(possible, size - k, 0.0)
    log_p = _log_choose(drawn, inside) + _log_choose(total - drawn, rest) - _log_choose(total, size)
    return np.where(possible, np.exp(np.minimum(log_p, 0.0)), 0.0)


def _log_choose(n: int, k: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """log(n over k), elementwise, for whole 0 <= k <= n.

    Stirling's formula for the three factorials, its large terms cancelled before they are computed: differences of log-gamma
    would keep no digits where n is hundreds of millions and k small. `stored.log_choose` of the SQL macros is the same.
    Source: Loader 2000, "Fast and accurate computation of binomial probabilities".
    """
    import numpy as np

    is_inside = (k > 0) & (k < n)  # else there is one way to choose
    k = np.where(is_inside, k, 1.0)
    rest = np.where(is_inside, n - k, 1.0)
    large = k * np.log1p(rest / k) + rest * np.log1p(k / rest) + 0.5 * np.log((k + rest) / (2 * np.pi * k * rest))
    errors = _stirling_error(k + rest) - _stirling_error(k) - _stirling_error(rest)
    return np.where(is_inside, large + errors, 0.0)


def _stirling_error(x: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Error of Stirling's formula for log(x!), elementwise, for integers x >= 1."""
    import numpy as np

    small = [math.lgamma(i + 1) - (i + 0.5) * math.log(i) + i - 0.5 * math.log(2 * math.pi) for i in range(1, _SERIES_FROM)]
    series = (1 / 12 - (1 / 360 - 1 / (1260 * x**2)) / x**2) / x
    return np.where(x < _SERIES_FROM, np.array(small)[np.minimum(x, _SERIES_FROM - 1).astype(np.int64) - 1], series)
