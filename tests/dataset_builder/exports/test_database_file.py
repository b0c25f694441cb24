"""An exported database answers as ours does, by the duckdb module alone, and explains itself."""

from collections.abc import Callable
from pathlib import Path

import duckdb
import fsspec
import pytest

from dataset_builder.dataset.building import build_dataset
from dataset_builder.dataset.recipe import BuildConfig
from dataset_builder.export import ExportConfig, main
from dataset_builder.sql.dataset_files import open_stored
from dataset_builder.sql.macros import MACROS
from foundry.errors import UserError
from foundry.storage.folder import Folder
from tests.dataset_builder.small_run import SmallRun
from tests.s3 import s3_bucket

MACRO_CALLS = ("density()", "valid_nouns(2)", "rarefied(3)", "compare('dense', 'short')", "with_all(['owl', 'tree'])")
Rows = list[tuple[object, ...]]


@pytest.fixture(params=["run", "dataset"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Folders whose names are no identifiers, no literals and patterns of a glob."""
    name = """it's [a] "run" *; DROP"""
    run = SmallRun(perceptual_hashes={"img_0": 3, "img_1": 4}).write(Folder(str(tmp_path / name))).url
    if request.param == "run":
        return run
    config = BuildConfig(captions=(run,), out=str(tmp_path / f"{name} data"))
    build_dataset(config)
    return config.out


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def _answers(ask: Callable[[str], Rows], views: list[str]) -> dict[str, list[str]]:
    return {name: sorted(map(repr, ask(f"FROM {name}"))) for name in (*views, *MACRO_CALLS)}


def _asked(path: Path) -> Callable[[str], Rows]:
    """What the duckdb module alone makes of the file."""

    def ask(sql: str) -> Rows:
        with duckdb.connect(path, read_only=True) as connection:
            return connection.execute(sql).fetchall()

    return ask


def test_the_file_answers_as_the_query_command_does(source: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = elsewhere.parent / "out's.duckdb"
    assert main(ExportConfig(source=source, out=str(out))) == 0
    assert "duckdb -readonly" in capsys.readouterr().out
    with open_stored(source) as database:
        views = list(database.comments)

        def ours(sql: str) -> Rows:
            connection = database._connection  # the very rows, without Arrow between
            return connection.execute(sql).fetchall()

        expected = _answers(ours, views)
    assert any(expected["captions"])
    assert _answers(_asked(out), views) == expected
    renamed = out.rename(elsewhere / "other.duckdb")
    assert _answers(_asked(renamed), views) == expected
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{renamed}' AS exported (READ_ONLY); USE exported")
        assert _answers(lambda sql: connection.execute(sql).fetchall(), views) == expected


def test_every_view_column_and_macro_is_explained(source: str, elsewhere: Path) -> None:
    out = elsewhere / "a.duckdb"
    main(ExportConfig(source=source, out=str(out)))
    ask = _asked(out)
    of_own = "schema_name = 'main' AND NOT internal"
    unexplained = ask(
        f"SELECT table_name, column_name FROM duckdb_columns() WHERE {of_own} AND comment IS NULL "
        "AND table_name NOT IN ('about', 'dictionary')"
    )
    assert unexplained == []
    explained = (
        f"SELECT table_name, column_name, data_type, comment FROM duckdb_columns() WHERE {of_own} AND comment IS NOT NULL"
    )
    assert sorted(ask(explained)) == sorted(ask("FROM dictionary"))
    assert len(ask("FROM dictionary")) > 80
    macros = ask(f"SELECT comment FROM duckdb_functions() WHERE {of_own} AND function_type ILIKE '%macro%'")
    assert {str(comment).partition(":")[0] for (comment,) in macros} == set(MACROS)
    no_comment = f"SELECT view_name FROM duckdb_views() WHERE {of_own} AND comment IS NULL"
    assert ask(no_comment) == []
    (storage,) = ask("SELECT tags['storage_version'] FROM duckdb_databases() WHERE NOT internal")
    assert str(storage[0]).startswith("v1.3")  # which older DuckDBs read too
    assert ask("SELECT value FROM about WHERE name = 'source'") == [(source,)]


def test_relative_paths_move_with_the_folder(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(source)
    main(ExportConfig(source=source, out=str(folder / "here.duckdb"), paths="relative"))
    moved = folder.rename(tmp_path / "moved")
    monkeypatch.chdir(moved)
    assert _asked(Path("here.duckdb"))("SELECT count(*) FROM captions") == [(10,)]


def test_a_file_is_replaced_only_where_that_is_said_and_as_a_whole(tmp_path: Path) -> None:
    small = SmallRun()
    folder = small.write(Folder(str(tmp_path / "run")))
    out = tmp_path / "out" / "run.duckdb"
    config = ExportConfig(source=folder.url, out=str(out))
    main(config)
    small.commit(folder, 2, range(6, 8))
    with pytest.raises(UserError, match="exists: give another name") as error:
        main(config)
    assert error.value.setting == "overwrite"
    count = "SELECT count(*) FROM captions"
    assert _asked(out)(count) == [(10,)]
    again = ExportConfig(source=folder.url, out=str(out), overwrite=True)
    main(again)
    assert _asked(out)(count) == [(14,)]

    lost = min((tmp_path / "run" / "captions").iterdir())
    lost.rename(tmp_path / "lost")
    with pytest.raises(UserError, match="check"):
        main(again)
    (tmp_path / "lost").rename(lost)
    assert _asked(out)(count) == [(14,)]
    assert [path.name for path in out.parent.iterdir()] == ["run.duckdb"]


def test_what_cannot_be_exported_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is neither a run nor a data set"):
        main(ExportConfig(source=str(tmp_path), out=str(tmp_path / "a.duckdb")))
    run = SmallRun().write(Folder(str(tmp_path / "run"))).url
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot work in"):
        main(ExportConfig(source=run, out=str(tmp_path / "file" / "a.duckdb")))
    with pytest.raises(UserError, match="exists"):
        main(ExportConfig(source=run, out=str(tmp_path / "run"), overwrite=True))
    assert not (tmp_path / "a.duckdb").exists()


def test_a_run_on_object_storage_keeps_its_urls(tmp_path: Path) -> None:
    out = tmp_path / "remote.duckdb"
    with s3_bucket() as bucket:
        url = SmallRun().write(Folder(f"{bucket}/runs/owls")).url
        main(ExportConfig(source=url, out=str(out)))
        with duckdb.connect(out, read_only=True) as connection:
            connection.register_filesystem(fsspec.filesystem("s3"))  # in place of httpfs, which DuckDB fetches from the network
            assert connection.execute("SELECT count(*) FROM captions").fetchall() == [(10,)]
            files = connection.execute("SELECT sql FROM duckdb_views() WHERE schema_name = 'stored'").fetchall()
            assert any(f"'{url}/captions/" in sql for (sql,) in files)
        with pytest.raises(UserError, match="is not on a local disk") as error:
            main(ExportConfig(source=url, out=str(tmp_path / "b.duckdb"), paths="relative"))
        assert error.value.setting == "paths"
