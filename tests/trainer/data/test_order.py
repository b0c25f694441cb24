"""Every sample once an epoch, whoever reads, from wherever a training resumes."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trainer.data.order import DataOrder, _generator, caption_draws, choose_caption, in_order

Buckets = Mapping[tuple[int, int], tuple[tuple[int, int], ...]]


@st.composite
def buckets(draw: st.DrawFn) -> Buckets:
    """One to four buckets of one to six units of up to nine samples."""
    sizes = draw(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=4))
    numbers = iter(range(1000))
    return {(4, 4 + place): tuple((next(numbers), rows) for rows in units) for place, units in enumerate(sizes)}


@given(units=buckets(), seed=st.integers(0, 3), batch_size=st.integers(1, 12))
@settings(max_examples=60)
def test_every_sample_is_seen_once_an_epoch_within_the_rounding(units: Buckets, seed: int, batch_size: int) -> None:
    order = DataOrder(units, seed=seed, batch_size=batch_size)
    seen: Counter[tuple[int, int]] = Counter()
    by_bucket: Counter[tuple[int, int]] = Counter()
    for index in range(3 * order.num_samples // batch_size + 2):
        batch = order.batch(index)
        assert len(batch.samples) == batch_size
        assert {unit for unit, _ in batch.samples} <= {unit for unit, _ in units[batch.bucket]}
        seen.update(batch.samples)
        by_bucket[batch.bucket] += batch_size
    for bucket, group in units.items():
        samples = [(unit, row) for unit, rows in group for row in range(rows)]
        epochs = by_bucket[bucket] / len(samples)
        assert all(int(epochs) <= seen[sample] <= int(epochs) + 1 for sample in samples)
        share = 3 * order.num_samples * len(samples) / order.num_samples
        assert abs(by_bucket[bucket] - share) <= 2 * batch_size + len(samples), "a bucket gets its share"


@given(units=buckets(), batch_size=st.integers(1, 12), start=st.integers(0, 200))
@settings(max_examples=30)
def test_one_resumes_from_anywhere(units: Buckets, batch_size: int, start: int) -> None:
    unbroken = DataOrder(units, seed=0, batch_size=batch_size)
    expected = [unbroken.batch(index) for index in range(start + 3)]
    resumed = DataOrder(units, seed=0, batch_size=batch_size)
    assert [resumed.batch(index) for index in range(start, start + 3)] == expected[start:]
    assert [resumed.batch(index) for index in range(start)] == expected[:start]


@given(units=buckets(), seed=st.integers(0, 3), batch_size=st.integers(1, 12), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_sample_is_seen_as_often_as_its_weight_says(units: Buckets, seed: int, batch_size: int, data: st.DataObject) -> None:
    sizes = {unit: rows for group in units.values() for unit, rows in group}
    one = st.sampled_from([0.0, 0.3, 0.5, 1.0, 2.0, 3.25])
    weights = {unit: np.array(data.draw(st.lists(one, min_size=rows, max_size=rows))) for unit, rows in sizes.items()}
    assume(sum(values.sum() for values in weights.values()) > 0)
    order = DataOrder(units, seed=seed, batch_size=batch_size, weights=weights)
    seen: Counter[tuple[int, int]] = Counter()
    by_bucket: Counter[tuple[int, int]] = Counter()
    for index in range(4 * order.num_samples // batch_size + 2):
        batch = order.batch(index)
        assert len(batch.samples) == batch_size
        seen.update(batch.samples)
        by_bucket[batch.bucket] += batch_size
    for bucket, group in units.items():
        in_all = sum(weights[unit].sum() for unit, _ in group)
        if not in_all:
            assert bucket not in order.buckets and not by_bucket[bucket]
            continue
        for unit, rows in group:
            for row in range(rows):
                # Whole permutations give the weight within 1; all of them together round by less than an image a sample.
                often, weight = by_bucket[bucket] / in_all, weights[unit][row]
                slack = 2 + weight * (2 + sum(rows for _, rows in group) / in_all)
                assert abs(seen[unit, row] - often * weight) <= slack and (weight or not seen[unit, row])
    resumed = DataOrder(units, seed=seed, batch_size=batch_size, weights=weights)
    assert resumed.batch(7) == order.batch(7)


def test_permutations_give_exactly_the_weight() -> None:
    """144 images of a permutation: weights 1 and 2 each time, 0.5 every other time, 0 never."""
    weights = {0: np.repeat([1.0, 2.0, 0.5, 0.0], [40, 48, 16, 24])}
    order = DataOrder({(4, 4): [(0, 128)]}, seed=0, batch_size=144, weights=weights)
    batches = [Counter(row for _, row in order.batch(index).samples) for index in range(6)]
    seen = sum(batches, Counter())
    assert all(6 * weight - 2 <= seen[row] <= 6 * weight + 2 for row, weight in enumerate(weights[0]))
    assert sum(seen.values()) == 6 * 144


@given(units=buckets(), batch_size=st.integers(1, 12), start=st.integers(0, 200))
@settings(max_examples=30)
def test_weights_of_one_change_nothing(units: Buckets, batch_size: int, start: int) -> None:
    weights = {unit: np.ones(rows) for group in units.values() for unit, rows in group}
    plain, weighted = (DataOrder(units, seed=1, batch_size=batch_size, weights=each) for each in (None, weights))
    assert [weighted.batch(index) for index in range(start, start + 3)] == [plain.batch(i) for i in range(start, start + 3)]


def test_files_are_read_in_long_runs() -> None:
    order = DataOrder({(4, 4): [(unit, 50) for unit in range(20)]}, seed=0, batch_size=50)
    assert all(len({unit for unit, _ in order.batch(index).samples}) <= 5 for index in range(20))


def test_another_seed_is_another_order_and_epochs_differ() -> None:
    units = {(4, 4): [(0, 40), (1, 40)]}
    order, other = (DataOrder(units, seed=seed, batch_size=80) for seed in (0, 1))
    assert order.batch(0) != other.batch(0) and order.batch(0) != order.batch(1)


def test_nothing_to_order_is_an_error() -> None:
    with pytest.raises(ValueError, match="no sample"):
        DataOrder({(4, 4): []}, seed=0, batch_size=4)
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        DataOrder({(4, 4): [(0, 1)]}, seed=0, batch_size=0)


def test_validation_is_each_sample_once() -> None:
    units = {(4, 4): [(0, 3), (2, 4)], (2, 8): [(1, 2)]}
    batches = list(in_order(units, batch_size=4))
    assert [len(batch.samples) for batch in batches] == [2, 4, 3]
    assert len({sample for batch in batches for sample in batch.samples}) == 9


def test_captions_are_chosen_by_weight_and_dropped_by_share() -> None:
    names = ("dense", "short", "alt_text")
    weights = {"dense": 3.0, "short": 1.0}
    draws = caption_draws(seed=0, positions=range(4000)).tolist()
    chosen = [choose_caption(names, draw, dropout=0.1, weights=weights) for draw in draws]
    counts = Counter(chosen)
    assert 300 < counts[None] < 500 and counts[2] == 0
    assert 2.5 < counts[0] / counts[1] < 3.5
    assert {choose_caption(names, draw, dropout=0) for draw in draws[:100]} == {0, 1}
    (draw, *_) = draws
    assert choose_caption(("alt_text",), draw, dropout=0) == 0
    assert choose_caption(("alt_text",), draw, dropout=0, weights=weights) is None
    assert choose_caption((), draw, dropout=0) is None


def test_captions_are_drawn_for_a_position_whoever_asks() -> None:
    """The same numbers as a generator of each position gives: trainings of before resume with their captions."""
    whole = caption_draws(seed=3, positions=range(1000, 1064))
    assert np.array_equal(whole[7:9], caption_draws(seed=3, positions=range(1007, 1009)))
    assert np.array_equal(whole[5], _generator(3, "caption", 1005).random(2))


@given(units=buckets(), batch_size=st.integers(1, 12), index=st.integers(0, 30), data=st.data())
def test_a_part_of_a_batch_is_what_the_batch_has_there(
    units: Buckets, batch_size: int, index: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, batch_size - 1))
    part = range(start, data.draw(st.integers(start + 1, batch_size)))
    order = DataOrder(units, seed=0, batch_size=batch_size)
    whole, own = order.batch(index), DataOrder(units, seed=0, batch_size=batch_size).batch(index, part)
    assert own.bucket == whole.bucket and own.samples == whole.samples[part.start : part.stop]


def test_a_slice_of_a_large_batch_costs_what_the_slice_does() -> None:
    order = DataOrder({(4, 4): [(unit, 256) for unit in range(400)]}, seed=0, batch_size=11_392)
    windows = order._streams[0]._window
    assert len(order.batch(0, range(178)).samples) == 178
    assert windows.cache_info().misses == 1  # of 12 that the whole batch is from
