"""The order of samples: a pure function of the seed and the number of images seen, whoever reads them.

Each bucket is an endless stream: one permutation of its samples after the other. In epoch e a bucket of n samples gives
floor((e + 1) n / B) - floor(e n / B) batches of B, and the batches of all buckets are shuffled. So every sample is seen once an
epoch within the rounding of a batch, a bucket smaller than a batch gets its share, and nothing is ever dropped. Units are
shuffled whole and rows within a few units, so that files are read in long runs.

With weights, a sample of weight w is seen w times a permutation on average: between its permutations a and b exactly
floor(b w + o) - floor(a w + o) times, where o in [0, 1) is drawn once for the sample. So w = 1 is once each time, w = 2.5 twice
or three times in turn, w = 0 never; n is then the number of images of a permutation, which changes from one to the next.

A worker takes its part of the global batch, which does not depend on the number of workers.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from trainer.data.philox import uniforms
from trainer.features.buckets import Size
from trainer.features.sources import ALT_TEXT

WINDOW_UNITS = 4
"""Units whose rows are shuffled together."""
_CACHED_EPOCHS = 4
_CACHED_WINDOWS = 512
_CACHED_LENGTHS = 128

SampleIndex = tuple[int, int]
"""Unit and row."""
UnitSize = tuple[int, int]
"""Unit and how many samples it has."""
Weights = npt.NDArray[np.float64]
"""Weights of a unit's samples."""


@dataclass(frozen=True)
class OrderedBatch:
    """A global batch: samples of one bucket, in order."""

    bucket: Size
    samples: tuple[SampleIndex, ...]


class DataOrder:
    """The order of the samples of a split. Cheap to make; permutations are drawn when they are needed."""

    def __init__(
        self,
        bucket_units: Mapping[Size, Sequence[UnitSize]],
        *,
        seed: int,
        batch_size: int,
        weights: Mapping[int, Weights] | None = None,
    ) -> None:
        """`bucket_units`: units and how many samples each has, by bucket, as FeatureStore.samples gives them.

        `weights`: of each unit's samples (rows,), 0 or more; none: 1 for all. Raises ValueError if there is no sample.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
        self.batch_size = batch_size
        self.seed = seed
        streams = {
            bucket: _Stream(tuple(units), seed=seed, bucket=bucket, weights=weights)
            for bucket, units in sorted(bucket_units.items())
        }
        self.buckets = tuple(bucket for bucket, stream in streams.items() if stream.mean_length)
        if not self.buckets:
            raise ValueError("there is no sample to order")
        self._streams = [streams[bucket] for bucket in self.buckets]
        self._epoch = lru_cache(maxsize=_CACHED_EPOCHS)(self._draw_epoch)

    @property
    def num_samples(self) -> int:
        """Samples that there are, whatever their weights."""
        return sum(stream.num_samples for stream in self._streams)

    def batch(self, index: int, part: range | None = None) -> OrderedBatch:
        """The global batch number `index`: images_seen // batch_size; `part`: of it, only the samples of one worker."""
        epoch = self._epoch_of(index)
        stream, number = self._epoch(epoch)[index - self._batches_before(epoch)]
        start, part = number * self.batch_size, range(self.batch_size) if part is None else part
        samples = self._streams[stream].samples(start + part.start, start + part.stop)
        return OrderedBatch(self.buckets[stream], tuple((unit, row) for unit, row in samples.tolist()))

    def _batches_before(self, epoch: int) -> int:
        return sum(self._bucket_batches(epoch))

    def _bucket_batches(self, epoch: int) -> list[int]:
        """Number of batches that each bucket has given before an epoch."""
        return [stream.length_before(epoch) // self.batch_size for stream in self._streams]

    def _epoch_of(self, index: int) -> int:
        """The last epoch that begins at or before a batch; epochs can be empty if there are few samples."""
        images = (index + len(self._streams) + 1) * self.batch_size
        # Rounding keeps back less than an image of each sample that has a weight.
        most = (images + self.num_samples) / sum(stream.mean_length for stream in self._streams)
        return _last(lambda epoch: self._batches_before(epoch) <= index, below=int(most) + 2)

    def _draw_epoch(self, epoch: int) -> list[tuple[int, int]]:
        """The batches of an epoch in order: which stream, and which batch of that stream."""
        before, after = self._bucket_batches(epoch), self._bucket_batches(epoch + 1)
        batches = [(stream, number) for stream in range(len(before)) for number in range(before[stream], after[stream])]
        order = _generator(self.seed, "epoch", epoch).permutation(len(batches))
        drawn = [batches[index][0] for index in order]
        # The batches of one bucket stay in the order of its stream: its files are read in long runs.
        numbers = [iter(range(first, last)) for first, last in zip(before, after, strict=True)]
        return [(stream, next(numbers[stream])) for stream in drawn]


class _Stream:
    """The endless stream of one bucket's samples."""

    def __init__(
        self, units: tuple[UnitSize, ...], *, seed: int, bucket: Size, weights: Mapping[int, Weights] | None = None
    ) -> None:
        self.units = units
        self.num_samples = sum(rows for _, rows in units)
        self._key = (seed, "bucket", *bucket)
        self._weighted = None if weights is None else _Weighted(units, weights, key=self._key)
        self.mean_length = float(self.num_samples) if self._weighted is None else self._weighted.mean_length
        """Images of a permutation, on average."""
        self._current = (0, 0, 0)  # a permutation, its first position and that after its last
        self._windows = lru_cache(maxsize=2)(self._draw_windows)
        self._window = lru_cache(maxsize=_CACHED_WINDOWS)(self._draw_window)

    def samples(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Units and rows (stop - start, 2) at positions of the stream from `start` to before `stop`."""
        found: list[npt.NDArray[np.int64]] = []
        while start < stop:
            permutation, within = self._find(start)
            ends, _ = self._windows(permutation)
            window = bisect_right(ends, within)
            first = within - (ends[window - 1] if window else 0)
            found.append(self._window(permutation, window)[first : first + stop - start])
            start += len(found[-1])
        return np.concatenate(found)

    def length_before(self, permutation: int) -> int:
        """Images of all permutations before one."""
        return permutation * self.num_samples if self._weighted is None else self._weighted.length_before(permutation)

    def _find(self, position: int) -> tuple[int, int]:
        """The permutation of a position, and the position in it."""
        if self._weighted is None:
            return divmod(position, self.num_samples)
        permutation, first, end = self._current
        if not first <= position < end:
            most = int((position + self.num_samples) / self.mean_length) + 2
            permutation = _last(lambda number: self.length_before(number) <= position, below=most)
            first, end = self.length_before(permutation), self.length_before(permutation + 1)
            self._current = permutation, first, end
        return permutation, position - first

    def _draw_windows(self, permutation: int) -> tuple[list[int], list[tuple[UnitSize, ...]]]:
        """The shuffled units in groups, and the position in the permutation at which each group ends."""
        lengths = dict(self.units) if self._weighted is None else self._weighted.unit_lengths(permutation)
        order = _generator(*self._key, permutation).permutation(len(self.units))
        shuffled = [self.units[index] for index in order]
        groups = [tuple(shuffled[start : start + WINDOW_UNITS]) for start in range(0, len(shuffled), WINDOW_UNITS)]
        return list(accumulate(sum(lengths[unit] for unit, _ in group) for group in groups)), groups

    def _draw_window(self, permutation: int, window: int) -> npt.NDArray[np.int64]:
        """The samples of a group of units, shuffled: (rows, 2)."""
        group = self._windows(permutation)[1][window]
        samples = np.concatenate([np.stack([np.full(rows, unit), np.arange(rows)], axis=1) for unit, rows in group])
        if self._weighted is not None:
            samples = np.repeat(samples, np.concatenate([self._weighted.times(unit, permutation) for unit, _ in group]), axis=0)
        shuffled: npt.NDArray[np.int64] = _generator(*self._key, permutation, window).permutation(samples)
        return shuffled


class _Weighted:
    """Number of times that each sample of a stream is in each of its permutations."""

    def __init__(self, units: Sequence[UnitSize], weights: Mapping[int, Weights], *, key: tuple[int | str, ...]) -> None:
        assert all(len(weights[unit]) == rows for unit, rows in units)
        self._weights = {unit: weights[unit] for unit, _ in units}
        self._offsets = {unit: _generator(*key, "weights", unit).random(rows) for unit, rows in units}
        self.mean_length = float(sum(values.sum() for values in self._weights.values()))
        self.length_before = lru_cache(maxsize=_CACHED_LENGTHS)(self._length_before)

    def times(self, unit: int, permutation: int) -> npt.NDArray[np.int64]:
        """Number of times that each row of a unit is in a permutation, (rows,)."""
        return self._times_before(unit, permutation + 1) - self._times_before(unit, permutation)

    def unit_lengths(self, permutation: int) -> dict[int, int]:
        """Images of a permutation by unit."""
        return {unit: int(self.times(unit, permutation).sum()) for unit in self._weights}

    def _length_before(self, permutation: int) -> int:
        return sum(int(self._times_before(unit, permutation).sum()) for unit in self._weights)

    def _times_before(self, unit: int, permutation: int) -> npt.NDArray[np.int64]:
        """Number of times that each row is in all permutations before one; multiplied and added as float64, the same on every
        machine."""
        found: npt.NDArray[np.int64] = np.floor(permutation * self._weights[unit] + self._offsets[unit]).astype(np.int64)
        return found


def in_order(bucket_units: Mapping[Size, Sequence[UnitSize]], *, batch_size: int) -> Iterator[OrderedBatch]:
    """Every sample once, bucket by bucket, in batches of at most `batch_size`: for validation."""
    for bucket, units in sorted(bucket_units.items()):
        samples = [(unit, row) for unit, rows in units for row in range(rows)]
        for start in range(0, len(samples), batch_size):
            yield OrderedBatch(bucket, tuple(samples[start : start + batch_size]))


def caption_draws(*, seed: int, positions: Sequence[int]) -> npt.NDArray[np.float64]:
    """Two random numbers in 0..1 for the caption at each position (images seen before it), (n, 2)."""
    digests = b"".join(hashlib.sha256(_key(seed, "caption", position)).digest()[:16] for position in positions)
    return uniforms(np.frombuffer(digests, "<u8").astype(np.uint64).reshape(-1, 2))[:, :2]


def choose_caption(
    names: Sequence[str], draw: Sequence[float], *, dropout: float, weights: Mapping[str, float] | None = None
) -> int | None:
    """Chooses the caption variant that a sample is seen with, by two random numbers (caption_draws); none: the null caption.

    The null caption comes with probability `dropout`; the variants share the rest by their weights. Without weights they share
    alike, save that alt text is not read where there is a caption. A sample none of whose variants has a weight, or that has
    none, gets the null caption.

    Source: PixArt-alpha trains on generated captions; the code of Sigma draws them or the alt text, each half of the time.
    """
    shares = [weights.get(name, 0.0) if weights else float(name != ALT_TEXT or len(names) == 1) for name in names]
    first, second = draw
    if first < dropout or not any(shares):
        return None
    ends = list(accumulate(shares))
    return min(bisect_right(ends, second * ends[-1]), len(names) - 1)


def _last(holds: Callable[[int], bool], *, below: int) -> int:
    """The last number from 0 to before `below` for which a condition holds that holds for 0 and, once not, never again."""
    return bisect_right(range(below), 0, key=lambda number: not holds(number)) - 1


def _generator(*key: int | str) -> np.random.Generator:
    """Numbers that depend on the key alone, on every machine."""
    digest = hashlib.sha256(_key(*key)).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def _key(*key: int | str) -> bytes:
    return "\0".join(map(str, key)).encode()
