"""Batches for training, read ahead by threads: the same batches in the same order for any number of threads.

Reading is copying from mapped files, which releases Python's lock; so threads are enough, and nothing is pickled between
processes.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from trainer.data.order import DataOrder, SampleIndex, caption_draws, choose_caption
from trainer.features.store import FeatureBatch, FeatureStore, SampleRequest


@dataclass(frozen=True, kw_only=True)
class CaptionChoice:
    """The choice of the caption that a sample is seen with; see choose_caption in order.py."""

    dropout: float = 0.1
    """Share of samples that are seen with the null caption."""
    weights: Mapping[str, float] | None = None
    """Weight of each variant by name; none: all captions alike, alt text where there is no caption."""


class Loader:
    """Iterates over this rank's part of the global batches, without end. Close it, or use it as a context.

    `wait_s` is the time that the last batch was waited for.
    """

    def __init__(
        self,
        store: FeatureStore,
        order: DataOrder,
        *,
        start_images_seen: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 2,
        prefetch: int = 4,
        captions: CaptionChoice | None = None,
        pin: bool = False,
        teacher_images: int = 0,
    ) -> None:
        """`num_workers`: threads, 0 reads when asked; `prefetch`: batches ahead; `teacher_images`: images from the start of the
        order that are read with what the teacher sees. Raises ValueError for what does not divide.
        """
        if order.batch_size % world_size:
            raise ValueError(f"a batch of {order.batch_size} images cannot be shared by {world_size} workers: give a multiple")
        if start_images_seen % order.batch_size:
            raise ValueError(f"expected images seen in whole batches of {order.batch_size}, found {start_images_seen}")
        self.store = store
        self.order = order
        self.wait_s = 0.0
        self._captions = captions or CaptionChoice()
        self._pin = pin
        self._teacher_images = teacher_images
        own = order.batch_size // world_size
        self._part = range(rank * own, (rank + 1) * own)
        self._next = start_images_seen // order.batch_size
        self._prefetch = max(1, prefetch)
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="loader") if num_workers else None
        self._ahead: deque[Future[FeatureBatch]] = deque()

    def __iter__(self) -> Iterator[FeatureBatch]:
        return self

    def __next__(self) -> FeatureBatch:
        started = time.perf_counter()
        if self._threads is None:
            batch = self._read(self._next)
            self._next += 1
        else:
            while len(self._ahead) < self._prefetch:
                self._ahead.append(self._threads.submit(self._read, self._next))
                self._next += 1
            batch = self._ahead.popleft().result()
        self.wait_s = time.perf_counter() - started
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads; what was read ahead is dropped."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def _read(self, index: int) -> FeatureBatch:
        batch = self.order.batch(index, self._part)
        first = index * self.order.batch_size
        requests = self._requests(batch.samples, positions=range(first + self._part.start, first + self._part.stop))
        return self.store.read(requests, pin=self._pin, with_teacher=first < self._teacher_images)

    def _requests(self, samples: Sequence[SampleIndex], *, positions: range) -> list[SampleRequest]:
        if self.store.info.class_names:
            return [SampleRequest(unit=unit, row=row) for unit, row in samples]
        draws = caption_draws(seed=self.order.seed, positions=positions).tolist()
        choose = partial(choose_caption, dropout=self._captions.dropout, weights=self._captions.weights)
        return [
            SampleRequest(unit=unit, row=row, caption=partial(choose, draw=draw))
            for (unit, row), draw in zip(samples, draws, strict=True)
        ]
