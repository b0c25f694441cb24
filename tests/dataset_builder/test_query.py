"""The query command: three formats, and a conversation that survives mistakes."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dataset_builder.query import QueryConfig, main
from foundry.errors import UserError
from foundry.storage.folder import Folder
from tests.dataset_builder.small_run import SmallRun

Ask = Callable[..., str]


@pytest.fixture
def ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    folder = SmallRun().write(Folder(str(tmp_path / "run")))

    def answer(sql: str, **options: object) -> str:
        assert main(QueryConfig(run=folder.url, sql=sql, **options)) == 0  # type: ignore[arg-type]
        return capsys.readouterr().out

    return answer


def test_json_is_json(ask: Ask) -> None:
    found = json.loads(ask("SELECT key, nouns, rejected, 0.5 AS half, sum(1) OVER () AS n, 'nan'::DOUBLE AS x, committed_at "
                           "FROM captions, commits WHERE unit = 1 ORDER BY ALL LIMIT 2", format="json"))  # fmt: skip
    assert [row["key"] for row in found] == ["img_0", "img_0"]
    assert found[0] | {"committed_at": ""} == {
        "key": "img_0",
        "nouns": ["image", "owl"],
        "rejected": {"broken": 1},
        "half": 0.5,
        "n": 10,
        "x": None,
        "committed_at": "",
    }
    assert json.loads(ask("SELECT 1 WHERE false", format="json")) == []


def test_csv_is_csv(ask: Ask) -> None:
    found = list(
        csv.reader(
            io.StringIO(ask("SELECT caption, nouns, NULL AS nothing FROM captions ORDER BY 1 DESC LIMIT 1", format="csv"))
        )
    )
    assert found == [
        ["caption", "nouns", "nothing"],
        ["An owl sits beside a house and a tree under the sky.", '["owl", "house", "tree", "sky"]', ""],
    ]
    assert ask("SELECT key FROM captions WHERE false", format="csv") == "key\n"


def test_table_is_readable(ask: Ask) -> None:
    shown = ask("SELECT noun, count FROM noun_counts WHERE prompt = 'dense'; SELECT 7 AS seven; EXPLAIN SELECT 1")
    assert "│ owl" in shown
    assert "seven" in shown
    assert "\\n" not in shown  # a plan is drawn, not quoted
    long = ask("SELECT range AS i FROM range(1000)", max_rows=10)
    assert len(long.splitlines()) < 25


def test_a_mistake_is_an_error(ask: Ask) -> None:
    with pytest.raises(UserError, match="did you mean captions"):
        ask("SELECT * FROM caption")


def test_conversation_survives_mistakes(ask: Ask, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        "",
        "SELECT noun",
        "FROM caption;",
        "SELECT 41 +",
        "1 AS answer;",
        "\\d",
        "\\d captions",
        "\\x",
        "\\r",
        "DROP VIEW images;",
        "SELECT 5 AS five",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    shown = ask("")
    assert "42" in shown
    assert "one row per image and prompt" in shown
    assert "mean_logprob" in shown
    assert "five" in shown  # the last question needs no ;


def test_conversation_reports_errors_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = SmallRun().write(Folder(str(tmp_path / "run")))
    monkeypatch.setattr("sys.stdin", io.StringIO("SELECT * FROM caption;\nDROP VIEW images;\n\\q\nSELECT 6 AS six;\n"))
    assert main(QueryConfig(run=folder.url)) == 0
    out, err = capsys.readouterr()
    assert "six" not in out
    assert [line.split(":")[0] for line in err.splitlines()] == ["error", "error"]


def test_no_run_no_prompt(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run\.json"):
        main(QueryConfig(run=str(tmp_path)))


@pytest.mark.parametrize("command", ["\\h", "\\?", "help", "HELP;", ".help"])
def test_help_is_found_by_its_usual_names(
    command: str, ask: Ask, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{command}\nexit\nSELECT 6 AS six;"))
    shown = ask("")
    assert "lists tables and macros" in shown
    assert "six" not in shown
    assert not capsys.readouterr().err


@pytest.mark.parametrize("command", ["\\d captions", ".schema captions", "\\d captions;"])
def test_columns_are_explained(command: str, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f".tables\n{command}\n"))
    lines = ask("").splitlines()
    assert any(line.startswith("captions ") and line.endswith("one row per image and prompt") for line in lines)
    explained = next(line for line in lines if line.startswith("mean_logprob "))
    assert explained.split(maxsplit=2) == [
        "mean_logprob",
        "FLOAT",
        "mean of the tokens' natural log-probabilities; 0 is certain",
    ]


def test_commands_of_the_prompt_are_answered_without_it(ask: Ask) -> None:
    assert "mean of the tokens' natural log-probabilities" in ask("\\d captions")
    assert "one row per image and prompt" in ask(".tables")
    with pytest.raises(UserError, match="there is no command"):
        ask("\\x")


def test_a_reader_that_leaves_early_is_no_mistake_in_sql(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(BrokenPipeError):
        ask("SELECT 1")


def test_an_empty_view_says_what_fills_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = SmallRun().write(Folder(str(tmp_path / "run")))
    assert main(QueryConfig(run=folder.url, sql="FROM Caption_Scores; FROM captions", format="csv")) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"caption_scores is empty, nothing was scored yet: run python -m dataset_builder.score {folder.url}"
    ]
