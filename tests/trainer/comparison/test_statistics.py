"""What a table says of seeds is what Student's t says of paired differences."""

import pytest
from scipy import stats

from trainer.comparison.statistics import estimate, interval_factor, what_seeds_tell

BASE = {0: 0.50, 1: 0.54, 2: 0.49, 3: 0.51}
ARM = {0: 0.48, 1: 0.53, 2: 0.46, 3: 0.50}


def test_mean_spread_and_interval_are_those_of_a_paired_test() -> None:
    found = estimate(ARM, BASE)
    assert found.mean == pytest.approx(0.4925) and found.spread == pytest.approx(0.0298608, abs=1e-6)
    difference = found.difference
    assert difference is not None and difference.half_width is not None
    test = stats.ttest_rel(list(ARM.values()), list(BASE.values()))
    low, high = test.confidence_interval(0.95)
    assert difference.mean - difference.half_width == pytest.approx(low)
    assert difference.mean + difference.half_width == pytest.approx(high)
    assert difference.is_beyond_noise and test.pvalue < 0.05


def test_a_difference_that_varies_as_much_as_it_is_large_is_within_noise() -> None:
    found = estimate({0: 0.48, 1: 0.55, 2: 0.46}, {0: 0.50, 1: 0.54, 2: 0.49}).difference
    assert found is not None and found.mean == pytest.approx(-0.04 / 3)
    assert not found.is_beyond_noise
    same = estimate(BASE, BASE).difference
    assert same is not None and (same.mean, same.half_width, same.is_beyond_noise) == (0.0, 0.0, False)


def test_only_seeds_that_both_have_are_paired() -> None:
    found = estimate({0: 1.0, 1: 2.0, 7: 9.0}, {0: 0.5, 1: 1.5, 2: 0.0})
    assert found.mean == 4.0 and found.difference is not None
    assert dict(found.difference.values) == {0: 0.5, 1: 0.5}
    assert estimate({7: 9.0}, BASE).difference is None and estimate(ARM, None).difference is None


def test_one_seed_gives_no_interval_and_more_give_narrower_ones() -> None:
    alone = estimate({0: 0.4}, BASE)
    assert alone.spread is None and alone.difference is not None
    assert alone.difference.half_width is None and not alone.difference.is_beyond_noise
    assert interval_factor(1) is None
    assert [interval_factor(number) for number in (2, 3, 5)] == pytest.approx([8.985, 2.484, 1.242], abs=1e-3)
    assert "may be that of the seed alone" in what_seeds_tell(1)
    assert "With 3 seeds an interval reaches 2.5 standard deviations" in what_seeds_tell(3)
    assert "With 5 seeds it reaches 1.2" in what_seeds_tell(3)
