"""SQL over captioning runs and data sets, read-only: the only file that imports duckdb.

`open_files` opens a run or a data set as it is at that moment, also while the job writes (open_run of run_files.py, open_stored
of dataset_files.py). The SQL reads the views of those two files and the macros of macros.py, and nothing else: no other file,
no setting, no environment, and it writes nowhere. `open_workbench` opens several runs at once and can keep tables;
`write_database` writes a file with the views for other programs.
"""

import difflib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import duckdb

from dataset_builder.sql.macros import HOLDS_ALL, MACROS, macro_sql
from dataset_builder.sql.views import LOCKS, Stored, columns_sql, comment_sql, literal, stored_urls, unknown_name
from foundry.errors import UserError, one_line
from foundry.storage.folder import Folder

if TYPE_CHECKING:
    import pyarrow as pa

Connection = duckdb.DuckDBPyConnection
_BATCH_ROWS = 4096
_OLDEST_READER = "v1.3.0"  # the first DuckDB that knows the lambdas of the macros
# What does not fit is spilled to a temporary folder, up to half of its free disk: memory does not grow with the captions.
_MEMORY_LIMIT = "3GB"
# The unit of a file of a run, or the block of its sums: its name begins with it.
_UNIT = r"TRY_CAST(regexp_extract(filename, '([0-9]+)-[0-9a-f]+[.]parquet$', 1) AS INTEGER)"
# Above this number the folders of the files may be read instead: duckdb takes 10 us for each path. Besides the files they hold
# only attempts at units that no commit names.
MOST_PATHS = 20_000
_COMMENT_OR_SPACE = r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*"
_EXPLAIN = re.compile(rf"{_COMMENT_OR_SPACE}EXPLAIN\b{_COMMENT_OR_SPACE}(?:ANALYZE\b|\([^()]*\))?", re.IGNORECASE | re.DOTALL)


class Database:
    """A locked database with views, each with its comment, of what has these `settings`. For one thread at a time."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        *,
        comments: dict[str, str],
        settings: dict[str, Any],
        ending: ExitStack,
        empty_views: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._connection = connection
        self._ending = ending
        self.settings = settings
        self.comments = comments
        self._empty_views = empty_views

    @cached_property
    def views(self) -> dict[str, list[str]]:
        """The views and their columns; looked up when first asked for, since every look reads the list of files."""
        return {name: _columns(self._connection, name) for name in self.comments}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and deletes what it spilled."""
        self._ending.close()

    def interrupt(self) -> None:
        """Ends the query that another thread waits for, which raises UserError there. Any thread may call it at any time."""
        self._connection.interrupt()

    def statements(self, sql: str) -> list[str]:
        """The statements of a text, each one a question. Raises UserError for one that is none, or that cannot be parsed."""
        try:
            found = self._connection.extract_statements(sql)
        except duckdb.Error as error:
            raise UserError(self._explain(error)) from None
        for statement in found:
            self._check(statement)
        return [statement.query for statement in found]

    def check_condition(self, sql: str, *, setting: str = "") -> None:
        """Raises UserError for SQL that is no single expression: in parentheses it would fail, or add to what is around."""
        try:
            found = [self.statements(f"SELECT {before}{sql}\n{after}") for before, after in (("", ""), ("(", ")"))]
        except UserError as error:
            raise UserError(f"the SQL condition is no single expression: {error}", setting=setting) from None
        if any(len(statements) != 1 for statements in found):
            raise UserError("the SQL condition is no single expression: expected one without ;", setting=setting)

    def hints(self, sql: str) -> list[str]:
        """Explanations of empty views that a statement names, and what to type."""
        return [hint for view, hint in self._empty_views.items() if re.search(rf"\b{view}\b", sql, re.IGNORECASE)]

    def fetch(self, sql: str) -> "pa.Table":
        """All rows of one statement. Raises UserError as `batches` does."""
        with self._result(sql) as result:
            table: pa.Table = result.to_arrow_reader(_BATCH_ROWS).read_all()
        return table

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
        with self._explained():
            statement = self._one(sql)
            self._connection.execute("BEGIN TRANSACTION READ ONLY")
            try:
                yield self._connection.sql(statement)
            finally:
                self._connection.execute("ROLLBACK")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what duckdb raises into a UserError."""
        try:
            yield
        except BrokenPipeError:  # whoever reads the answer has seen enough
            raise
        except (duckdb.Error, OSError) as error:  # a stream of Arrow batches reports duckdb's errors as OSError
            raise UserError(self._explain(error)) from None

    def _one(self, sql: str) -> str:
        statements = self.statements(sql)
        if len(statements) != 1:
            raise UserError(f"expected one SQL statement, found {len(statements)}: ask one question at a time")
        return statements[0]

    def _check(self, statement: duckdb.Statement) -> None:
        kinds = [_kind(statement)]
        if kinds == ["EXPLAIN"]:
            explained = _EXPLAIN.sub("", statement.query, count=1)
            kinds = [_kind(inner) for inner in self._connection.extract_statements(explained)]
        if kinds != ["SELECT"]:
            raise UserError(
                f"{_kind(statement)} statements are not allowed, because access is read-only: use SELECT, DESCRIBE, SUMMARIZE "
                "or EXPLAIN"
            )

    def _explain(self, error: Exception) -> str:
        """duckdb's error as one line that ends in what to do."""
        message = str(error)
        if unknown := unknown_name(message, tables=list(self.comments), columns=lambda: self.views):
            return unknown
        macro = re.search(r"(?:Function|Macro) with name \"?(.+?)\"? does not exist", message)
        if macro and (near := difflib.get_close_matches(macro.group(1), [name.partition("(")[0] for name in MACROS], n=1)):
            return f"there is no {macro.group(1)}(): did you mean {near[0]}()?"
        if "Out of Memory Error" in message:
            return f"the query needs more than {_MEMORY_LIMIT} of memory or half of the free disk: narrow it by WHERE or LIMIT"
        first = " ".join(message.split("\n\nLINE", maxsplit=1)[0].split())
        # Without a file of that name, duckdb looks for a folder, where it may not, or takes the name for a pattern.
        lost = re.search(r'Cannot access file "(.+)/\*\*/|No files found that match the pattern "([^"]+)"', message)
        if lost and self._may_read(lost[1] or lost[2]):
            return f"{lost[1] or lost[2]} cannot be read: check that it exists"
        if isinstance(error, duckdb.PermissionException) or "has been locked" in message or "read-only mode" in message:
            return f"SQL here only reads the views {', '.join(self.comments)}: {first}"
        return f"{first}: correct the SQL"

    def _may_read(self, url: str) -> bool:
        folder = f"{url.rpartition('/')[0]}/"
        is_listed = "list_contains(getvariable('readable'), ?) OR list_contains(getvariable('readable_folders'), ?)"
        found = self._connection.execute(f"SELECT {is_listed}", [url, folder]).fetchone()
        return bool(found and found[0])


class Workbench(Database):
    """A locked database that can keep the answers to its own questions as tables, for as long as it is open."""

    def keep(self, name: str, sql: str) -> None:
        """Makes a table of one statement's answer, in place of one of that name. Raises UserError as `batches` does."""
        with self._explained():
            self._connection.execute(f"CREATE OR REPLACE TABLE {name} AS {self._one(sql)}")

    def define(self, name: str, sql: str) -> None:
        """Makes a view of one statement. Raises UserError as `batches` does."""
        with self._explained():
            self._connection.execute(f"CREATE OR REPLACE VIEW {name} AS {self._one(sql)}")

    def change(self, update: str) -> None:
        """Runs an UPDATE of a table that was kept; for SQL of this program only."""
        self._connection.execute(update)

    def keep_table(self, name: str, table: "pa.Table") -> None:
        """Makes a table of an Arrow table."""
        _create_table(self._connection, name, table)


def open_workbench(runs: Mapping[str, Stored]) -> Workbench:
    """Several runs at once, by name: each of their views (but for `commits`) has all rows, with a column `run` before its own.

    The relations `run_<n>.stored.<kind>` are the files of the n-th run alone, with a column `unit`.
    """
    with ExitStack() as stack:
        connection = stack.enter_context(_scratch())
        for number, run in enumerate(runs.values()):
            connection.execute(f"ATTACH ':memory:' AS run_{number}")
            connection.execute(f"USE run_{number}")
            _create_views(connection, run, number=number)
        connection.execute("USE memory")
        comments = {name: what for name, what in next(iter(runs.values())).views.items() if name != "commits"}
        for view in comments:
            parts = [f"SELECT {literal(name)} AS run, * FROM run_{number}.{view}" for number, name in enumerate(runs)]
            connection.execute(f"CREATE VIEW {view} AS {' UNION ALL BY NAME '.join(parts)}")
        connection.execute(HOLDS_ALL)
        _set_files(connection, list(runs.values()))
        connection.execute("; ".join(LOCKS))
        return Workbench(connection, comments=comments, settings={}, ending=stack.pop_all())


@contextmanager
def scratch_database(directory: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty database for one's own SQL, which spills to `directory` what does not fit in memory."""
    with duckdb.connect() as connection:
        connection.execute(f"SET temp_directory = {literal(directory)}")
        yield connection


@contextmanager
def _scratch() -> Iterator[duckdb.DuckDBPyConnection]:
    with tempfile.TemporaryDirectory(prefix="t2i-sql-") as directory, scratch_database(directory) as connection:
        connection.execute(f"SET memory_limit = '{_MEMORY_LIMIT}'")
        connection.execute(f"SET max_temp_directory_size = '{shutil.disk_usage(directory).free // 2} bytes'")
        yield connection


def open_files(stored: Stored) -> Database:
    """The run or data set whose record was read already."""
    with ExitStack() as stack:
        connection = stack.enter_context(_scratch())
        _create_views(connection, stored)
        for statement in macro_sql(has_noun_index="noun_index" in stored.schemas):
            connection.execute(statement)
        _set_files(connection, [stored])
        connection.execute("; ".join(LOCKS))
        return Database(
            connection, comments=stored.views, settings=stored.settings, ending=stack.pop_all(), empty_views=stored.empty_views
        )


def write_database(
    path: Path, stored: Stored, *, urls: Callable[[list[str]], list[str]], folder: str, tables: "Mapping[str, pa.Table]"
) -> None:
    """Writes a new database with the views, the macros and these tables, and a comment on each view, macro and column.

    It reads the committed files by the names that `urls` makes of their paths; relative ones are looked up in `folder` while
    it is written. Raises UserError if the files cannot be read.
    """
    try:
        with duckdb.connect(path, config={"storage_compatibility_version": _OLDEST_READER}) as connection:
            connection.execute(f"SET file_search_path = {literal(folder)}")
            _create_views(connection, stored)
            for statement in macro_sql(has_noun_index="noun_index" in stored.schemas):
                connection.execute(statement)
            for name, table in tables.items():
                _create_table(connection, name, table)
            for kind in stored.schemas:
                if paths := stored.paths(kind):
                    files = f"[{', '.join(map(literal, urls(paths)))}]"
                    connection.execute(_stored_view(stored, kind, files, replaces=True))
            columns = {name: _columns(connection, name) for name in stored.views}
            for statement in comment_sql(stored.views, columns, tables=stored.tables()):
                connection.execute(statement)
    except duckdb.Error as error:
        raise UserError(
            f"the database cannot be written ({one_line(error)}): check its folder and the files it reads"
        ) from None


def _create_views(connection: duckdb.DuckDBPyConnection, stored: Stored, *, number: int = 0) -> None:
    """The relations of `stored` and the views on them, in the present catalog; `number` tells several runs apart.

    The names of files are in variables: as text in a view, 20,000 of them are parsed again wherever the view is used. While
    the views are made a variable has one name alone, which says all of the columns: each new view looks for every file.
    """
    folder = stored.folder
    if folder.is_local:
        connection.execute("SET enable_external_file_cache = false")  # the system caches; this costs a third with small files
    elif not connection.filesystem_is_registered(_protocol(folder)):
        connection.register_filesystem(folder.filesystem)
    connection.execute("CREATE SCHEMA stored")
    try:
        for kind, schema in stored.schemas.items():
            if paths := stored.paths(kind):
                connection.execute(f"SET VARIABLE {kind}_{number} = ?", [stored_urls(folder, paths[:1])])
                connection.execute(_stored_view(stored, kind, f"getvariable('{kind}_{number}')"))
            else:
                _create_table(connection, f"stored.{kind}", schema.empty_table())
                connection.execute(f"ALTER TABLE stored.{kind} ADD COLUMN unit INTEGER")
        for name, table in stored.tables().items():
            _create_table(connection, name, table)
        for statement in stored.statements():
            connection.execute(statement)
    except (duckdb.Error, OSError) as error:
        raise UserError(f"{folder.url} cannot be read: {' '.join(str(error).split())}; check that its files exist") from None


def _stored_view(stored: Stored, kind: str, files: str, *, replaces: bool = False) -> str:
    """The statement that creates the relation of a kind on `files`, SQL for a list of names."""
    create = "CREATE OR REPLACE VIEW" if replaces else "CREATE VIEW"
    columns = columns_sql(stored.schemas[kind])
    return f"{create} stored.{kind} AS SELECT {columns}, {_UNIT} AS unit FROM read_parquet({files}, hive_partitioning = false)"


def _set_files(connection: duckdb.DuckDBPyConnection, opened: Sequence[Stored]) -> None:
    """Gives the views all of their files, and lists those that may be read, or their folders."""
    readable: set[str] = set()
    for number, stored in enumerate(opened):
        for kind in stored.schemas:
            if urls := stored_urls(stored.folder, stored.paths(kind)):
                connection.execute(f"SET VARIABLE {kind}_{number} = ?", [urls])
                readable.update(urls)
    folders = {f"{url.rpartition('/')[0]}/" for url in readable} if len(readable) > MOST_PATHS else set()
    connection.execute("SET VARIABLE readable = ?::VARCHAR[]", [[] if folders else sorted(readable)])
    connection.execute("SET VARIABLE readable_folders = ?::VARCHAR[]", [sorted(folders)])


def _protocol(folder: Folder) -> str:
    protocol = folder.filesystem.protocol
    return protocol if isinstance(protocol, str) else str(protocol[0])


def _create_table(connection: duckdb.DuckDBPyConnection, name: str, table: "pa.Table") -> None:
    connection.register("arrow", table)
    connection.execute(f"CREATE TABLE {name} AS SELECT * FROM arrow")
    connection.unregister("arrow")


def _kind(statement: duckdb.Statement) -> str:
    try:
        return statement.type.name.replace("_", " ")
    except ValueError:  # UPDATE EXTENSIONS and others have a number alone in Python
        return "such"


def _columns(connection: duckdb.DuckDBPyConnection, view: str) -> list[str]:
    return [name for name, *_ in connection.execute(f"DESCRIBE {view}").fetchall()]
