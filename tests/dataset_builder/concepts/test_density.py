"""VN, DN and their rarefaction, against drawing samples and against exact fractions."""

from fractions import Fraction
from itertools import pairwise
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder.concepts.density import PAPER_TABLE, VALID_ABOVE, density_of, rarefied

COUNTS = st.lists(st.integers(0, 60), min_size=1, max_size=20).map(lambda counts: np.array(counts, dtype=np.int64))


def test_valid_is_strictly_more_than_ten() -> None:
    density = density_of(np.array([10, 11, 1, 0, 30]), num_captions=4)
    assert (density.valid_nouns, density.distinct_nouns, density.total_nouns) == (2, 4, 52)
    assert (density.ratio, density.nouns_per_caption) == (0.5, 13.0)


def test_nothing_has_no_density() -> None:
    nothing = density_of(np.array([], dtype=np.int64), num_captions=0)
    assert (nothing.ratio, nothing.nouns_per_caption) == (0.0, 0.0)
    assert rarefied(np.array([], dtype=np.int64), num_captions=3, sample_size=2).distinct_nouns == 0


def test_rarefaction_is_the_mean_of_samples() -> None:
    random = np.random.default_rng(0)
    counts = np.array([1] * 200 + [5] * 60 + [15] * 40 + [40] * 20 + [300] * 3)
    nouns = np.repeat(np.arange(len(counts)), counts)
    found = rarefied(counts, num_captions=1000, sample_size=400)
    samples = [np.bincount(random.choice(nouns, found.total_nouns, replace=False)) for _ in range(400)]
    assert found.total_nouns == round(len(nouns) * 0.4)
    assert found.distinct_nouns == pytest.approx(np.mean([(sample > 0).sum() for sample in samples]), rel=0.01)
    assert found.valid_nouns == pytest.approx(np.mean([(sample > VALID_ABOVE).sum() for sample in samples]), rel=0.02)


@given(counts=COUNTS, share=st.integers(0, 50))
@settings(deadline=None)
def test_rarefaction_is_exact(counts: np.ndarray, share: int) -> None:
    total = int(counts.sum())
    drawn = round(total * share / 50)

    def at_least(size: int, least: int) -> Fraction:
        ways = sum(comb(size, k) * comb(total - size, drawn - k) for k in range(least, min(size, drawn) + 1))
        return Fraction(ways, comb(total, drawn))

    found = rarefied(counts, num_captions=50, sample_size=share)
    assert found.distinct_nouns == pytest.approx(float(sum(at_least(int(size), 1) for size in counts)), abs=1e-6)
    assert found.valid_nouns == pytest.approx(float(sum(at_least(int(size), 11) for size in counts)), abs=1e-6)


@given(counts=COUNTS)
@settings(deadline=None)
def test_the_whole_is_a_sample_of_itself(counts: np.ndarray) -> None:
    assert rarefied(counts, num_captions=7, sample_size=7) == density_of(counts, num_captions=7)


@given(counts=COUNTS)
@settings(deadline=None)
def test_larger_samples_hold_more(counts: np.ndarray) -> None:
    sizes = [rarefied(counts, num_captions=20, sample_size=size) for size in range(0, 21, 4)]
    for smaller, larger in pairwise(sizes):
        assert smaller.distinct_nouns <= larger.distinct_nouns + 1e-6
        assert smaller.valid_nouns <= larger.valid_nouns + 1e-6


def test_a_corpus_of_the_papers_size() -> None:
    """327.9M nouns in a Zipf-like order: a hundredth of them, where P(k) of rare nouns is close to binomial."""
    counts = np.maximum(3e7 / np.arange(1, 124_001) ** 1.1, 1).astype(np.int64)
    found = rarefied(counts, num_captions=11_200_000, sample_size=112_000)
    p = found.total_nouns / counts.sum()
    assert found.distinct_nouns == pytest.approx((1 - (1 - p) ** counts.astype(float)).sum(), rel=1e-4)
    assert 0 < found.valid_nouns < found.distinct_nouns


def test_a_sample_is_no_larger_than_the_whole() -> None:
    with pytest.raises(ValueError, match="a sample of 5 cannot be drawn from 4"):
        rarefied(np.array([1]), num_captions=4, sample_size=5)


def test_the_papers_table_agrees_with_itself() -> None:
    for row in PAPER_TABLE:
        valid, distinct = (float(part.strip().removesuffix("K")) for part in row.vn_dn.split("/"))
        assert row.ratio == pytest.approx(valid / distinct, abs=0.003)
        assert float(row.total_nouns.removesuffix("M")) / row.nouns_per_image == pytest.approx(11.2, abs=0.06)
