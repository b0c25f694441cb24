"""SQL of people over the sources of a studio: one query per person, which they can stop, within a limit of time."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dataset_builder.sql.database import Database, open_files
from foundry.errors import UserError
from studio.captions.source import CaptionSource
from studio.html import failure, table

MOST_SQL_ROWS = 500
_AGAIN_S = 0.1
"""Seconds between two interrupts: one that comes before the query has begun does nothing."""


@dataclass
class _Query:
    """A query under way; `reason` says why it is stopped."""

    stop: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    reason: str = ""

    def end(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.stop.set()


class SqlBox:
    """Queries by the locked database of dataset_builder.query; a person's next query ends the one before."""

    def __init__(self, sources: Sequence[CaptionSource], *, limit_s: float) -> None:
        self._sources = sources
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._queries: dict[str, _Query] = {}

    def ask(self, source: int, question: str, *, person: str = "") -> str | None:
        """The answer as a table or as an error; None if the person has asked something else meanwhile.

        `person` is a name for an open page.
        """
        if not question.strip():
            return failure("expected a query, such as SELECT * FROM captions LIMIT 5")
        with self._query(person) as query:
            try:
                answer = self._answer(self._sources[source], question, query)
            except UserError as error:
                answer = failure(query.reason or str(error))
        return answer if self._queries.get(person) is query else None

    def stop(self, person: str = "") -> None:
        """Stops the query of a person, if there is one."""
        if query := self._queries.get(person):
            query.end("stopped")

    def close(self) -> None:
        """Stops all queries."""
        for query in list(self._queries.values()):
            query.end("the studio was closed")

    @contextmanager
    def _query(self, person: str) -> Iterator[_Query]:
        query = _Query()
        with self._lock:
            self.stop(person)
            self._queries[person] = query
        try:
            yield query
        finally:
            query.done.set()

    def _answer(self, source: CaptionSource, question: str, query: _Query) -> str:
        rows: list[dict[str, Any]] = []
        with open_files(source.newest()) as database:
            watcher = threading.Thread(target=self._watch, args=(query, database), name="studio-sql", daemon=True)
            watcher.start()
            try:
                hints = database.hints(question)
                for batch in database.batches(question):
                    rows += batch.to_pylist()
                    if len(rows) > MOST_SQL_ROWS:
                        break
            finally:
                query.done.set()
                watcher.join()
        if query.reason:
            raise UserError(query.reason)
        more = f", the first {MOST_SQL_ROWS:,} rows" if len(rows) > MOST_SQL_ROWS else ""
        return "".join(failure(hint) for hint in hints) + table(rows[:MOST_SQL_ROWS], caption=f"Answer{more}")

    def _watch(self, query: _Query, database: Database) -> None:
        """Interrupts a query that is stopped or has no time left."""
        until = time.monotonic() + self._limit_s
        while not query.done.wait(_AGAIN_S):
            if time.monotonic() > until:
                query.end(
                    f"the query ran for {self._limit_s:g} s, which is the limit: narrow it with WHERE or LIMIT, or start the "
                    "studio with a higher sql_limit_s"
                )
            if query.stop.is_set():
                database.interrupt()
