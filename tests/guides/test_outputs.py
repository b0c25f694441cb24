"""What guides say comes out does come out: SQL, questions to the archive, plans, Python; each page in a folder of its own."""

import contextlib
import contextvars
import io
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import duckdb
import pytest

from dataset_builder.export import ExportConfig
from dataset_builder.export import main as export
from dataset_builder.sql.console import print_answer
from dataset_builder.sql.database import Database
from dataset_builder.sql.dataset_files import open_stored
from foundry.commands import STARTED_BY_T2I
from tests.guides.pages import PAGES, ROOT, Shown, differences, our_commands, shown
from tests.in_this_process import run_here

QUICK = {
    "captioner.status",
    "dataset_builder.build",
    "dataset_builder.density",
    "dataset_builder.export",
    "dataset_builder.query",
    "trainer.plan",
}
"""Commands that need no model and take seconds. What the others print was copied once; the page says when."""
ARCHIVE = "archive/"
WIDTH = "110"
MAX_ROWS = 40
CLI = re.compile(r'duckdb (?:-readonly (?P<file>\S+)|-c) "(?P<sql>[^"]*)"')
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.stem}")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the archive and what a checkout has."""
    for name in ("configs", "examples", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "examples" / "archive", tmp_path / "archive")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", WIDTH)
    return tmp_path


@each_page
def test_its_answers_are_true(page: Path, here: Path) -> None:
    wrong = []
    opened: dict[str, Database] = {}
    scope: dict[str, object] = {"__name__": "guide"}
    for example in shown(page):
        printed = _printed(example, here, opened, scope)
        if printed is not None and example.output and (difference := differences(example.output, printed.splitlines())):
            wrong.append(f"{page.name}:{example.line}: {example.text}\n{difference}")
    for database in opened.values():
        database.close()
    assert not wrong, "\n\n".join(wrong)


def _printed(example: Shown, here: Path, opened: dict[str, Database], scope: dict[str, object]) -> str | None:
    """What an example prints; None for a command that is not run here. A folder is opened once for a page.

    The Python of a page is one program, with the names in `scope`.
    """
    if example.kind == "sql":
        if example.asked not in opened:
            opened[example.asked] = open_stored(example.asked)
        return _captured(lambda: print_answer(opened[example.asked], example.text, answer_format="table", max_rows=MAX_ROWS))
    if example.kind == "python":
        return _captured(lambda: exec(example.text, scope))
    if example.text.startswith("duckdb "):
        return _by_duckdbs_program(example.text)
    found = list(our_commands(example.text))
    if len(found) != 1 or found[0][0] not in QUICK or not _is_here(found[0][1], here):
        return None
    (module, words) = found[0]
    run = _planned if module == "trainer.plan" and words[1].startswith("configs/") else _command
    printed = run(module, tuple(words), is_t2i="t2i " in example.text)
    if ">" in example.text.rpartition('"')[2]:
        (here / example.text.rpartition(">")[2].strip()).write_text(printed, encoding="utf-8")
        return ""
    return printed


def _is_here(words: Sequence[str], here: Path) -> bool:
    """Whether the command asks the archive, or what was made of it here, or plans a training."""
    made = (word for word in words if word and not word.startswith("examples/"))
    return any(word.startswith((ARCHIVE, "configs/")) or (here / word).exists() for word in made)


def _captured(call: Callable[[], object]) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        call()
    return text.getvalue()


def _command(module: str, words: tuple[str, ...], *, is_t2i: bool) -> str:
    """What the command prints as it was typed: `t2i NAME` names other commands so, too."""

    def run() -> str:
        STARTED_BY_T2I.set(is_t2i)
        return run_here(module, *words)

    return contextvars.copy_context().run(run)


_planned = cache(_command)
"""The same, once for several pages: the plan of a file is the same everywhere."""


def _by_duckdbs_program(command: str) -> str:
    """What DuckDB's own program prints, or where it is not installed the duckdb module, which draws the same boxes."""
    if shutil.which("duckdb"):
        return subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout
    found = CLI.fullmatch(command)
    assert found, command
    with duckdb.connect(found["file"] or ":memory:", read_only=bool(found["file"])) as connection:
        answer = None
        for statement in connection.extract_statements(found["sql"]):
            answer = connection.sql(statement.query)
        return _captured(partial(answer.show, max_rows=MAX_ROWS, max_width=int(WIDTH))) if answer else ""


SQL = [example for page in PAGES for example in shown(page) if example.kind == "sql"]


@pytest.mark.parametrize("folder", sorted({example.asked for example in SQL}))
def test_an_exported_database_gives_the_same_answers(folder: str, here: Path) -> None:
    export(ExportConfig(source=folder, out=str(here / "exported.duckdb")))
    with duckdb.connect(here / "exported.duckdb", read_only=True) as connection:
        for example in (one for one in SQL if one.asked == folder):
            answer = connection.sql(example.text)
            printed = _captured(partial(answer.show, max_rows=MAX_ROWS, max_width=int(WIDTH)))
            assert not example.output or not differences(example.output, printed.splitlines()), example.text


def test_a_false_answer_is_seen() -> None:
    assert differences(["│ owl │ 7 │"], ["│ owl │ 8 │"])
    assert differences(["a", "…", "d"], ["a", "b", "c", "d"]) == ""
    assert differences(["a", "…", "d"], ["a", "b", "c"])
    assert differences(["took … s"], ["took 3 s"]) == ""
    assert differences(["a", "b"], ["b", "a"])
    assert differences(["a"], ["a", "b"])
