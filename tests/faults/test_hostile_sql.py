"""Hostile SQL: through every door that takes SQL, nothing outside of the run is read, nothing is written, and limits hold."""

import json
import random
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_builder.dataset.building import build_dataset
from dataset_builder.dataset.recipe import BuildConfig
from dataset_builder.exports.database_file import export_database
from dataset_builder.sql.database import open_files
from dataset_builder.sql.dataset_files import open_stored, read_stored
from foundry.errors import UserError
from foundry.storage.folder import Folder
from studio.captions.source import open_sources
from studio.captions.sql_box import SqlBox
from studio.recipes.page import RecipeTab, Sliders
from tests.dataset_builder.small_run import SmallRun
from tests.faults.conftest import Tally
from tests.faults.statements import STATEMENTS
from trainer.data.queries import answer

CANARY = "canary-nobody-may-see"


@dataclass
class World:
    """A run, secrets next to it, and a web server that counts who knocks."""

    folder: Path
    run: str
    knocks: socket.socket
    before: dict[str, bytes] = field(default_factory=dict)

    @property
    def port(self) -> int:
        return int(self.knocks.getsockname()[1])

    def files(self) -> dict[str, bytes]:
        return {
            str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file() and "scratch" not in path.parts
        }

    def check(self, said: str) -> None:
        """Fails where a secret is told, a file is not as it was, or the server was asked for something."""
        assert CANARY not in said
        assert self.files() == self.before
        with pytest.raises(BlockingIOError):
            self.knocks.accept()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    run = SmallRun().write(Folder(str(folder / "run"))).url
    (folder / "secret.csv").write_text(f"a,b\n{CANARY},2\n")
    (folder / "secret.json").write_text(f'{{"a": "{CANARY}"}}\n')
    pq.write_table(pa.table({"key": [CANARY], "caption": [CANARY]}), folder / "secret.parquet")
    (folder / "run" / "captions" / "linked.parquet").symlink_to(folder / "secret.parquet")
    (folder / "run" / "secret.csv").symlink_to(folder / "secret.csv")
    (folder / "scratch").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as knocks, pytest.MonkeyPatch.context() as patch:
        knocks.setblocking(False)
        patch.setenv("CANARY", CANARY)
        patch.chdir(folder)
        world = World(folder, run, knocks)
        world.before = world.files()
        yield world


Door = Callable[[World, str], str]


def _query(world: World, sql: str) -> str:
    with open_stored(world.run) as database:
        return str(database.fetch(sql).to_pylist())


def _training(world: World, sql: str) -> str:
    return str(answer(sql, purpose="skip", dataset=world.run, training=world.folder / "scratch" / "none").to_pylist())


def _sql_box(world: World, sql: str) -> str:
    with open_sources([world.run], cache=world.folder / "scratch" / "cache") as sources:
        said = SqlBox(sources, limit_s=20).ask(0, sql)
    assert said is not None
    if 'class="failure"' in said or 'role="alert"' in said:
        raise UserError(said)
    return said


def _funnel(world: World, sql: str) -> str:
    with open_sources([world.run], cache=world.folder / "scratch" / "cache") as sources:
        tab = RecipeTab(sources, out=world.folder / "scratch")
        sliders = Sliders(prompts=("dense", "short"), least={}, where=f"EXISTS ({sql})")
        said = tab.funnel(list(tab.runs), sliders)
    if "images left" not in said:
        raise UserError(said)
    return said


def _where(world: World, sql: str) -> str:
    out = str(world.folder / "scratch" / "dataset")
    return str(
        build_dataset(BuildConfig(captions=(world.run,), out=out, dry_run=True, where=f"EXISTS ({sql})")).funnel.to_pylist()
    )


def _split(world: World, sql: str) -> str:
    out = str(world.folder / "scratch" / "dataset")
    splits: dict[str, float | str] = {"a": f"EXISTS ({sql})", "b": 0.5}
    return str(build_dataset(BuildConfig(captions=(world.run,), out=out, dry_run=True, splits=splits)).funnel.to_pylist())


DOORS: dict[str, Door] = {
    "query": _query,
    "training": _training,
    "studio's SQL": _sql_box,
    "studio's recipe": _funnel,
    "where": _where,
    "split": _split,
}


def refused(world: World, door: str, statement: str) -> str:
    """The line with which a door refuses a statement, for which nothing happened."""
    names = {"secret": world.folder / "secret", "folder": world.folder, "port": world.port}
    with pytest.raises(UserError) as error:
        DOORS[door](world, statement.format(**names))
    world.check(str(error.value))
    assert "\n" not in str(error.value) or door.startswith("studio"), error.value
    return str(error.value)


@pytest.mark.parametrize("door", [pytest.param(door, marks=[pytest.mark.faults, pytest.mark.slow]) for door in DOORS])
def test_nothing_outside_of_the_run_is_read_or_written(world: World, door: str, tally: Tally) -> None:
    for statement in STATEMENTS:
        refused(world, door, statement)
    tally("SQL", len(STATEMENTS))


def test_a_sample_is_refused(world: World, fault_seed: int, tally: Tally) -> None:
    sample = random.Random(fault_seed).sample(STATEMENTS, 20)
    for number, statement in enumerate(sample):
        refused(world, "where" if number % 5 == 0 else "query", statement)
    tally("SQL", len(sample))


_ARGUMENTS = {"BOOLEAN": "true", "DOUBLE": "1.0", "BLOB": "'{secret}'::BLOB", "VARCHAR[]": "['{secret}']"}


def _argument(kind: str | None, secret: str) -> str:
    """A value of a parameter's type: where it may be a text, the path of the secret."""
    if kind is None or kind.startswith(("VARCHAR", "ANY", "T")):
        return _ARGUMENTS.get(kind or "", "'{secret}'").format(secret=secret)
    return _ARGUMENTS.get(kind, "1" if "INT" in kind else "NULL").format(secret=secret)


@pytest.mark.slow
@pytest.mark.faults
def test_no_function_that_duckdb_has_tells_a_secret(world: World, tally: Tally) -> None:
    listing = "SELECT DISTINCT function_name, function_type, parameter_types FROM duckdb_functions() ORDER BY ALL"
    secrets, asked = [f"{world.folder}/secret.{suffix}" for suffix in ("csv", "parquet")], 0
    with open_stored(world.run) as database:
        for row in database.fetch(listing).to_pylist():
            for secret in [*secrets, "CANARY"]:
                values = ", ".join(_argument(kind, secret) for kind in row["parameter_types"] or ())
                call = f'"{row["function_name"]}"({values})'
                asked += 1
                try:
                    said = database.fetch(f"SELECT * FROM {call}" if "table" in row["function_type"] else f"SELECT {call}")
                    told = str(said.slice(0, 100).to_pylist())
                except UserError as error:
                    told = CANARY if "\n" in str(error) else str(error)
                assert CANARY not in told, call
        assert database.fetch("SELECT count(*) AS n FROM captions")["n"].to_pylist() == [10], "it answers as before"
    world.check("")
    tally("functions", asked)


CONDITIONS = [
    *("1=1) OR (1=1", "true; SELECT 1", "true; DROP VIEW candidates", "true FROM captions", "true AS x", "true LIMIT 1"),
    *(
        "true UNION SELECT true",
        "true ORDER BY 1",
        "1) AND (SELECT 1",
        "/* open",
        "'open",
        "$$open",
        "",
        "-- nothing",
        "SELECT 1",
    ),
    *("DISTINCT true", "x: true", "true GROUP BY ALL", "true) IS NULL) OR coalesce((true"),
]


@pytest.mark.parametrize("setting", ["where", "splits"])
def test_a_condition_is_one_expression_whose_parentheses_are_its_own(world: World, setting: str, tally: Tally) -> None:
    with open_files(read_stored(world.run)) as database:
        for condition in CONDITIONS:
            with pytest.raises(UserError, match="no single expression") as error:
                database.check_condition(condition, setting=setting)
            assert error.value.setting == setting
    options: dict[str, Any] = {"where": CONDITIONS[0]} if setting == "where" else {"splits": {"a": CONDITIONS[0]}}
    with pytest.raises(UserError, match="no single expression"):
        build_dataset(BuildConfig(captions=(world.run,), out=str(world.folder / "scratch" / "d"), dry_run=True, **options))
    tally("conditions", len(CONDITIONS) + 1)


BIG = "SELECT key, r.range, random() AS x FROM captions, range(2_000_000) r ORDER BY x"
ENDLESS = "WITH RECURSIVE t AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM t) SELECT count(*) FROM t"
EXPLOSIONS = [
    (BIG, "disk"),
    ("SELECT list(r.range) FROM range(100_000_000) r", "memory"),
    ("SELECT string_agg(repeat('x', 1_000_000), '') FROM range(1_000)", "memory"),
    ("SELECT max(a) FROM (WITH RECURSIVE t AS (SELECT 'x' AS a UNION ALL SELECT a || a FROM t) FROM t)", "memory"),
    ("SELECT repeat('x', 8_000_000_000)", "maximum supported string size"),
    ("SELECT len(range(10_000_000_000))", "not supported"),
    (f"SELECT {'(' * 5_000}1{')' * 5_000}", ""),
    ("SELECT " + "NOT " * 100_000 + "true", ""),
    ("SELECT 1" + " UNION ALL SELECT 1" * 5_000, "|"),
]
"""Queries that explode, and what the error says; "|" where an answer is as good."""


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize(("sql", "message"), EXPLOSIONS)
def test_a_query_that_explodes_ends_in_one_line(
    world: World, monkeypatch: pytest.MonkeyPatch, sql: str, message: str, *, tally: Tally
) -> None:
    monkeypatch.setattr("dataset_builder.sql.database._MEMORY_LIMIT", "300MB")
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: SimpleNamespace(free=200 << 20))
    with open_stored(world.run) as database:
        try:
            said = str(database.fetch(sql).num_rows)
        except UserError as error:
            said = str(error)
        assert "\n" not in said and (message in said or message == "|"), said[:300]
        assert database.fetch("SELECT count(*) AS n FROM captions")["n"].to_pylist() == [10], "it answers as before"
    tally("explosions", 1)


def test_a_query_without_end_ends_at_the_studios_limit(world: World, tally: Tally) -> None:
    with open_sources([world.run], cache=world.folder / "scratch" / "cache") as sources:
        assert "which is the limit" in str(SqlBox(sources, limit_s=0.5).ask(0, ENDLESS))
    tally("explosions", 1)


HOSTILE_NAMES = [
    "a' || getenv('CANARY') || '",
    "\" FROM read_text('{secret}.csv') --",
    "x\"), (SELECT content FROM read_text('{secret}.csv')) AS \"y",
    "'; ATTACH '{folder}/out.db' AS x; --",
    "${{CANARY}}",
    "key",
    "",
    "\0",
    "a\nb",
    "\u202e",
    "x" * 10_000,
]


def test_names_in_a_runs_record_are_names(world: World, tmp_path: Path, tally: Tally) -> None:
    names = {"secret": world.folder / "secret", "folder": world.folder}
    hostile = [name.format(**names) for name in HOSTILE_NAMES]
    captions = {name: "An owl." for name in hostile if name and "\0" not in name}
    run = SmallRun(carried=dict.fromkeys(hostile, "VARCHAR"), captions=captions).write(Folder(str(tmp_path / "run"))).url
    with open_stored(run) as database:
        said = str([database.fetch(f"SELECT * FROM {view}").to_pylist() for view in database.views])
        said += str(database.fetch("FROM density()").to_pylist())
        assert database.fetch("SELECT count(DISTINCT prompt) AS n FROM captions")["n"].to_pylist() == [len(captions)]
    export_database(run, str(tmp_path / "out.duckdb"), paths="absolute")
    build_dataset(BuildConfig(captions=(run,), out=str(tmp_path / "dataset")))
    with open_stored(str(tmp_path / "dataset")) as database:
        said += str(database.fetch("SELECT * FROM samples").to_pylist())
    world.check(said)
    tally("names", len(hostile))


@pytest.mark.parametrize("path", ["{secret}.parquet", "../secret.parquet", "samples/../../secret.parquet"])
def test_a_data_set_names_files_of_its_own_alone(world: World, tmp_path: Path, path: str) -> None:
    build_dataset(BuildConfig(captions=(world.run,), out=str(tmp_path / "dataset")))
    file = tmp_path / "dataset" / "dataset.json"
    record = json.loads(file.read_text())
    record["files"][0]["path"] = path.format(secret=world.folder / "secret")
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match="outside of the data set"):
        open_stored(str(tmp_path / "dataset"))
