"""Indexes many sources, several at once and in a fixed order: most of the time is spent waiting for the headers of tars."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from foundry.images.sources import Source, carried_columns, index_source
from foundry.storage.file_kinds import PassedOver

THREADS = 16


@dataclass(frozen=True, kw_only=True)
class IndexedSource:
    """`tables` as index_source yields them, `carried` as carried_columns says; num_passed_over counts files in a tar."""

    tables: Iterator[pa.Table]
    carried: dict[str, str]
    num_passed_over: int


def index_sources(sources: Sequence[Source]) -> Iterator[IndexedSource]:
    """The sources in their order; the next ones are read meanwhile, each as far as its first table (a tar's headers are then
    read to the end). Raises UserError as index_source does, for the first source in that order.
    """
    upcoming = iter(sources)
    with ThreadPoolExecutor(THREADS) as threads:
        begun = deque(threads.submit(_index, source) for source in itertools.islice(upcoming, 2 * THREADS))
        try:
            while begun:
                indexed = begun.popleft().result()
                begun.extend(threads.submit(_index, source) for source in itertools.islice(upcoming, 1))
                yield indexed
        finally:
            threads.shutdown(cancel_futures=True)


def _index(source: Source) -> IndexedSource:
    passed_over = PassedOver()
    tables = index_source(source, passed_over=passed_over)
    first = next(tables, None)
    if first is None:
        return IndexedSource(tables=tables, carried={}, num_passed_over=0)
    carried = carried_columns(source, first)
    return IndexedSource(tables=itertools.chain([first], tables), carried=carried, num_passed_over=passed_over.files)
