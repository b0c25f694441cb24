"""SQL over a captioning run, read-only: the only file that imports duckdb.

`open_run` answers questions about a run at the moment of opening, also while the job writes. The SQL reads the views of
dataset_builder/run_views.py and nothing else: no other file, no setting, no environment, and it writes nowhere.
"""

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import duckdb

from dataset_builder.command_line import UserError
from dataset_builder.run_views import STORED, VIEWS, RunFiles, commits_table, literal, read_run, stored_sql, view_sql

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 4096
_COMMENT_OR_SPACE = r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*"
_EXPLAIN = re.compile(rf"{_COMMENT_OR_SPACE}EXPLAIN\b{_COMMENT_OR_SPACE}(?:ANALYZE\b|\([^()]*\))?", re.IGNORECASE | re.DOTALL)
# The files of the views only; no variables of this process, no extensions from the network; then nothing can be changed.
_LOCKS = (
    "SET python_enable_replacements = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allowed_paths = [{paths}]",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)


class Database:
    """A locked database with `views` (name → columns) of what has these `settings`. Not for several threads at once."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, views: dict[str, list[str]], settings: dict[str, Any]) -> None:
        self._connection = connection
        self.settings = settings
        self.views = views

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def statements(self, sql: str) -> list[str]:
        """The statements of a text, each one a question. Raises UserError for one that is none, or that cannot be parsed."""
        try:
            found = self._connection.extract_statements(sql)
        except duckdb.Error as error:
            raise UserError(self._explain(error)) from None
        for statement in found:
            self._check(statement)
        return [statement.query for statement in found]

    def fetch(self, sql: str) -> "pa.Table":
        """All rows of one statement. Raises UserError as `batches` does."""
        import pyarrow as pa

        schema, batches = None, []
        with self._result(sql) as result:
            reader = result.to_arrow_reader(_BATCH_ROWS)
            schema, batches = reader.schema, list(reader)
        return pa.Table.from_batches(batches, schema=schema)

    def batches(self, sql: str) -> "Iterator[pa.RecordBatch]":
        """The rows of one statement, streamed; at least one batch, so that the columns are known.

        Raises UserError for what is not a question, for unknown tables and columns (with the nearest), for files, and for
        whatever else duckdb refuses.
        """
        import pyarrow as pa

        with self._result(sql) as result:
            reader = result.to_arrow_reader(_BATCH_ROWS)
            yield pa.RecordBatch.from_pylist([], schema=reader.schema)
            yield from reader

    def show(self, sql: str, *, max_rows: int, max_width: int) -> None:
        """Prints the answer to one statement as a box. Raises UserError as `batches` does."""
        with self._result(sql) as result:
            if result.columns == ["explain_key", "explain_value"]:
                print(*(plan for _, plan in result.fetchall()), sep="\n")
            else:
                result.show(max_rows=max_rows, max_width=max_width)

    @contextmanager
    def _result(self, sql: str) -> Iterator[duckdb.DuckDBPyRelation]:
        """The answer to one statement, inside a read-only transaction: a WITH can hold an INSERT."""
        statements = self.statements(sql)
        if len(statements) != 1:
            raise UserError(f"expected one SQL statement, found {len(statements)}: ask one question at a time")
        self._connection.execute("BEGIN TRANSACTION READ ONLY")
        try:
            yield self._connection.sql(statements[0])
        except (duckdb.Error, OSError) as error:  # a stream of Arrow batches reports duckdb's errors as OSError
            raise UserError(self._explain(error)) from None
        finally:
            self._connection.execute("ROLLBACK")

    def _check(self, statement: duckdb.Statement) -> None:
        if statement.type == duckdb.StatementType.SELECT:
            return
        if statement.type == duckdb.StatementType.EXPLAIN:
            explained = _EXPLAIN.sub("", statement.query, count=1)
            kinds = [inner.type for inner in self._connection.extract_statements(explained)]
            if kinds == [duckdb.StatementType.SELECT]:
                return
        kind = statement.type.name.replace("_", " ")
        raise UserError(
            f"{kind} statements are refused, since a run is only read: ask with SELECT, DESCRIBE, SUMMARIZE or EXPLAIN"
        )

    def _explain(self, error: Exception) -> str:
        """duckdb's error as one line that ends in what to do."""
        message = str(error)
        table = re.search(r'(?:Table with name|Referenced table) "?(.+?)"? (?:does not exist|not found)', message)
        if table:
            return f"there is no table {table.group(1)}: {_nearest(table.group(1), list(self.views))}"
        column = re.search(r'(?:Referenced column|column named) "(.+?)"(?: not found|\n|$)', message)
        if column:
            used = [name for name in self.views if re.search(rf"\b{name}\b", message)] or list(self.views)
            known = sorted({name for view in used for name in self.views[view]})
            return f"there is no column {column.group(1)}: {_nearest(column.group(1), known)}"
        first = " ".join(message.split("\n\nLINE", maxsplit=1)[0].split())
        if isinstance(error, duckdb.PermissionException) or "has been locked" in message or "read-only mode" in message:
            return f"SQL here only reads the views {', '.join(self.views)}: {first}"
        return f"{first}: correct the SQL"


def open_run(url: str) -> Database:
    """The run at `url` (a folder or an fsspec URL) as it is now. Raises UserError where there is none."""
    return _open_files(read_run(url))


@contextmanager
def scratch_database(directory: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty database for one's own SQL, which spills to `directory` what does not fit in memory."""
    with duckdb.connect() as connection:
        connection.execute(f"SET temp_directory = {literal(directory)}")
        yield connection


def _open_files(run: RunFiles) -> Database:
    connection = duckdb.connect()
    urls = {kind: [_url(run, path) for path in run.paths(kind)] for kind in STORED}
    if not run.folder.is_local:
        connection.register_filesystem(run.folder.filesystem)
    connection.execute("CREATE SCHEMA stored")
    try:
        for kind, schema in STORED.items():
            if urls[kind]:
                connection.execute(stored_sql(kind, urls[kind]))
            else:
                _create_table(connection, f"stored.{kind}", schema.empty_table())
        _create_table(connection, "commits", commits_table(run))
        for statement in view_sql(run):
            connection.execute(statement)
    except (duckdb.Error, OSError) as error:
        connection.close()
        raise UserError(
            f"{run.folder.url} cannot be read: {' '.join(str(error).split())}; check that its files are there"
        ) from None
    paths = ", ".join(literal(url) for kind in STORED for url in urls[kind])
    for statement in _LOCKS:
        connection.execute(statement.format(paths=paths))
    return Database(connection, {name: _columns(connection, name) for name in VIEWS}, run.record.get("settings", {}))


def _url(run: RunFiles, path: str) -> str:
    """A file of the run as duckdb opens it."""
    if run.folder.is_local:
        return run.folder.path(path)
    return str(run.folder.filesystem.unstrip_protocol(run.folder.path(path)))


def _create_table(connection: duckdb.DuckDBPyConnection, name: str, table: "pa.Table") -> None:
    connection.register("arrow", table)
    connection.execute(f"CREATE TABLE {name} AS SELECT * FROM arrow")
    connection.unregister("arrow")


def _columns(connection: duckdb.DuckDBPyConnection, view: str) -> list[str]:
    return [name for name, *_ in connection.execute(f"DESCRIBE {view}").fetchall()]


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
