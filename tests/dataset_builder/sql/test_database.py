"""SQL over a run: right at every moment of a run's life, and unable to reach or change anything else."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataset_builder.schema import CAPTIONS
from dataset_builder.sql.database import Database, scratch_database
from dataset_builder.sql.run_files import VIEWS, open_run
from foundry.errors import UserError
from foundry.images.index import REJECTED
from foundry.storage.folder import Folder
from tests.dataset_builder.small_run import SmallRun


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return SmallRun().write(Folder(str(tmp_path / "a run's [1]" / "k=v")))


@pytest.fixture
def run(folder: Folder) -> Iterator[Database]:
    with open_run(folder.url) as database:
        yield database


def rows(database: Database, sql: str) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in database.fetch(sql).to_pylist(maps_as_pydicts="strict")]


def test_images_are_those_read_and_those_still_to_be_read(run: Database) -> None:
    read = rows(run, "SELECT key, width FROM images ORDER BY key")
    assert read == [(f"img_{n}", 64 if n < 6 else None) for n in (0, 1, 2, 3, 5, 6, 7)]  # img_4 is rejected
    assert rows(run, "SELECT key, reason FROM rejected") == [("img_4", "broken")]
    planned, completed, rejected = rows(run, "SELECT sum(planned), sum(completed), sum(num_rejected) FROM commits")[0]
    assert (planned, completed, rejected) == (6, 5, 1)


def test_carried_columns_have_their_types_and_do_not_hide_ours(run: Database) -> None:
    found = run.fetch(
        "SELECT score, source_KEY, \"a.b/c\", ok, typeof(ok) AS kind FROM images WHERE key IN ('img_3', 'img_7') ORDER BY key"
    )
    assert found.to_pylist() == [
        {"score": 1.5, "source_KEY": "own 3", "a.b/c": 3, "ok": False, "kind": "BOOLEAN"},
        {"score": 3.5, "source_KEY": "own 7", "a.b/c": 7, "ok": False, "kind": "BOOLEAN"},
    ]


def test_nouns_and_their_counts_agree_for_one_prompt_too(tmp_path: Path) -> None:
    folder = SmallRun(captions={"dense": "A tree and an owl."}).write(Folder(str(tmp_path / "run")))
    with open_run(folder.url) as run:
        assert rows(run, "SELECT * EXCLUDE count_t5 FROM noun_counts ORDER BY noun") == [
            ("dense", "owl", 5, 5, False), ("dense", "tree", 5, 5, False)]  # fmt: skip


def test_nouns_and_their_counts_agree(run: Database) -> None:
    assert rows(
        run, "SELECT noun, position, is_meta, read_by_t5 FROM nouns WHERE key = 'img_0' AND prompt = 'short' ORDER BY position"
    ) == [
        ("image", 1, True, True),
        ("owl", 2, False, True),
    ]
    counted = rows(run, "SELECT prompt, noun, count, count_t5, is_meta FROM noun_counts ORDER BY ALL")
    recounted = (
        "SELECT prompt, noun, count(*), count(*) FILTER (read_by_t5), any_value(is_meta) FROM nouns GROUP BY ALL ORDER BY ALL"
    )
    assert counted == rows(run, recounted)
    assert ("dense", "sky", 5, 0, False) in counted


def test_columns_follow_the_schema(run: Database) -> None:
    assert run.views["captions"] == [*CAPTIONS.names, "value"]
    assert run.views["rejected"] == REJECTED.names
    assert list(run.views) == list(VIEWS)


@pytest.mark.parametrize("num_committed", [0, 3])
def test_a_run_at_its_start_and_at_its_end(tmp_path: Path, num_committed: int) -> None:
    folder = SmallRun(num_committed=num_committed).write(Folder(str(tmp_path / "run")))
    with open_run(folder.url) as database:
        assert rows(database, "SELECT count(*) FROM images") == [(8 if num_committed == 0 else 7,)]
        assert rows(database, "SELECT count(*) FROM captions") == [(0 if num_committed == 0 else 14,)]
        for view, columns in database.views.items():
            assert database.fetch(f"SELECT * FROM {view}").column_names == columns


def test_a_run_that_has_planned_nothing_yet(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "run"))
    folder.write("run.json", json.dumps({"run_id": "x"}).encode())
    with open_run(folder.url) as database:
        assert [rows(database, f"SELECT count(*) FROM {view}") for view in VIEWS] == [[(0,)]] * len(VIEWS)


def test_files_without_a_commit_do_not_exist(folder: Folder) -> None:
    SmallRun().commit(folder, 2, [6, 7])
    folder.filesystem.rm_file(folder.path("commits/00000002.json"))
    folder.write("commits/.00000002.json.ab12", b"{")  # a commit that is just being written
    with open_run(folder.url) as database:
        assert rows(database, "SELECT count(DISTINCT key) FROM captions") == [(5,)]
        assert rows(database, "SELECT width FROM images WHERE key = 'img_7'") == [(None,)]


def test_an_open_database_keeps_its_moment(folder: Folder, run: Database) -> None:
    SmallRun().commit(folder, 2, [6, 7])
    assert rows(run, "SELECT count(*) FROM commits") == [(2,)]
    with open_run(folder.url) as later:
        assert rows(later, "SELECT count(*) FROM commits") == [(3,)]
        assert rows(later, "SELECT count(*) FROM images WHERE width IS NULL") == [(0,)]


def test_a_run_on_object_storage() -> None:
    folder = SmallRun().write(Folder("memory://bucket/run"))
    with open_run(folder.url) as database:
        assert rows(database, "SELECT count(*) FROM captions WHERE len(nouns) > 0") == [(10,)]
        with pytest.raises(UserError, match="only reads the views"):
            database.fetch("SELECT * FROM read_text('memory://bucket/run/run.json')")
    folder.filesystem.rm(folder.root, recursive=True)


FORBIDDEN = [
    "COPY (SELECT 1) TO '{inside}'",
    "COPY captions TO '/tmp/t2i_test_out.csv'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{inside}'",
    "EXPLAIN /* */ ANALYZE -- x\n COPY (SELECT 1) TO '{inside}'",
    "EXPLAIN CREATE TABLE x AS SELECT 1",
    "ATTACH '/tmp/t2i_test.db'",
    "INSTALL httpfs",
    "LOAD json",
    "CREATE TABLE x AS SELECT 1",
    "CREATE OR REPLACE VIEW captions AS SELECT 1",
    "DROP VIEW captions",
    "DELETE FROM commits",
    "WITH gone AS (DELETE FROM commits RETURNING *) SELECT * FROM gone",
    "WITH more AS (INSERT INTO commits SELECT * FROM commits RETURNING *) SELECT * FROM more",
    "SET threads = 1",
    "PRAGMA database_list",
    "CALL pragma_version()",
    "BEGIN",
    "EXPORT DATABASE '/tmp/t2i_test'",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('{uncommitted}')",
    "SELECT * FROM read_parquet('{uncommitted}')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM query('COPY (SELECT 1) TO ''/tmp/t2i_test''')",
    "SELECT * FROM enable_logging(storage = 'file', storage_config = {{'path': '/tmp/t2i_test'}})",
    "SELECT getenv('HOME')",
    "SELECT * FROM FORBIDDEN",  # a variable of this module
    "SELECT 1; DROP VIEW captions",
    "SELECT 1; SELECT 2",
    "SELEC 1",
    "SELECT",
    "",
    "-- nothing",
]


@pytest.mark.parametrize("sql", FORBIDDEN)
def test_only_questions_about_the_run_are_answered(folder: Folder, run: Database, sql: str) -> None:
    inside = next(iter(Path(folder.root).glob("captions/*.parquet")))
    uncommitted = inside.with_name("uncommitted.parquet")
    uncommitted.write_bytes(inside.read_bytes())
    before = {path: path.read_bytes() for path in Path(folder.root).rglob("*") if path.is_file()}
    escaped = {name: str(path).replace("'", "''") for name, path in {"inside": inside, "uncommitted": uncommitted}.items()}
    with pytest.raises(UserError) as error:
        run.fetch(sql.format(**escaped))
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in Path(folder.root).rglob("*") if path.is_file()} == before
    assert not list(Path("/tmp").glob("t2i_test*"))
    assert rows(run, "SELECT count(*) FROM commits") == [(2,)]  # and the next question is answered as before


def test_of_many_files_the_folders_can_be_read_and_nothing_else(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataset_builder.sql.database.MOST_PATHS", 0)
    lost = next(Path(folder.root).glob("captions/00000001-*.parquet"))
    beside = Path(folder.root).with_name("captions2")
    beside.mkdir()
    (beside / "x.parquet").write_bytes(lost.read_bytes())
    with open_run(folder.url) as run:
        assert rows(run, "SELECT count(*) FROM captions") == [(10,)]
        for path in (f"{folder.root}/run.json", "/etc/passwd", f"{folder.root}/captions/../run.json", f"{beside}/x.parquet"):
            quoted = path.replace("'", "''")
            with pytest.raises(UserError, match="only reads the views"):
                run.fetch(f"SELECT * FROM read_text('{quoted}')")
        lost.unlink()
        with pytest.raises(UserError, match=r"captions/00000001-\w+\.parquet cannot be read: check that it exists$"):
            run.fetch("SELECT count(*) FROM captions")


@pytest.mark.parametrize(
    "sql",
    [
        "DESCRIBE captions",
        "SUMMARIZE commits",
        "SHOW TABLES",
        "EXPLAIN SELECT 1",
        "explain analyze select 1",
        "FROM captions",
        "VALUES (1)",
    ],
)
def test_other_ways_to_ask(run: Database, sql: str) -> None:
    assert run.fetch(sql).num_rows > 0


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT captoin FROM captions", "there is no column captoin: did you mean caption"),
        ("SELECT c.promt FROM captions c", "there is no column promt: did you mean prompt"),
        ("SELECT status FROM rejected", "this reads no column status: it is a column of captions and edits"),
        ("SELECT * FROM caption", "there is no table caption: did you mean captions"),
        ("SELECT * FROM zzzz", "there is no table zzzz: there are images, captions"),
        ("SELECT x.key FROM captions", "there is no table x: there are images"),
        ("SELECT lenn(caption) FROM captions", "correct the SQL"),
        ("SELECT caption FROM captions WHERE", "syntax error"),
        ("SELECT caption::INT FROM captions", "correct the SQL"),
    ],
)
def test_errors_name_the_nearest(run: Database, sql: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        run.fetch(sql)
    assert message in str(error.value)


def test_what_is_not_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path} is not a captioning run: it has no run\.json"):
        open_run(str(tmp_path))
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        open_run(str(tmp_path))


def test_a_lost_file_is_named(folder: Folder) -> None:
    for path in Path(folder.root).glob("captions/*.parquet"):
        path.unlink()
    with pytest.raises(UserError, match=r"captions.*check that its files exist"):
        open_run(folder.url)


def test_a_lost_file_among_others_is_named_by_the_question_that_needs_it(folder: Folder) -> None:
    next(Path(folder.root).glob("captions/00000001-*.parquet")).unlink()
    with open_run(folder.url) as run:
        assert rows(run, "SELECT count(*) FROM images") == [(7,)]
        with pytest.raises(UserError, match=r"captions/00000001-\w+\.parquet cannot be read: check that it exists$"):
            run.fetch("SELECT count(*) FROM captions")


def test_scratch_database_spills_where_it_is_told(tmp_path: Path) -> None:
    with scratch_database(str(tmp_path)) as database:
        assert database.execute("SELECT current_setting('temp_directory')").fetchone() == (str(tmp_path),)
