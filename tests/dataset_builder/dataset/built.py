"""A data set that is built and asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from dataset_builder.dataset.building import build_dataset
from dataset_builder.dataset.recipe import BuildConfig
from dataset_builder.sql.database import Database
from dataset_builder.sql.dataset_files import open_stored


@contextmanager
def built(config: BuildConfig) -> Iterator[Database]:
    build_dataset(config)
    with open_stored(config.out) as database:
        yield database


def ask(database: Database, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in database.fetch(sql).to_pylist()]


def check_that_the_funnel_adds_up(database: Database, *, planned: int) -> None:
    rows = ask(database, "SELECT step, reason, kept, dropped FROM funnel")
    assert rows[0] == ("planned", "", planned, 0)
    for before, (*_, kept, dropped) in pairwise(rows):
        assert kept == before[2] - dropped
    assert rows[-1][2] == ask(database, "SELECT count(*) FROM samples")[0][0]
    by_step = "SELECT step, reason, count(*) AS dropped FROM dropped GROUP BY ALL ORDER BY ALL"
    assert ask(database, by_step) == sorted((step, reason, dropped) for step, reason, _, dropped in rows if dropped)
