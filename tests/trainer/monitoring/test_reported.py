"""A training's lines and metrics as it reports them: for people, or as JSON, from this process or from workers elsewhere."""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from foundry.reporting.lines import choose_format
from tests.trainer.tiny_training import tiny_config, write_store
from trainer.distributed import Workers
from trainer.fit import main
from trainer.monitoring.run_folder import LOG, METRICS, RunFolder, printed_log

ROW = {"kind": "train", "step": 3, "images_seen": 12, "loss": 0.5}


@pytest.fixture(autouse=True)
def _same_format_after() -> Iterator[None]:
    yield
    choose_format("auto")


def rows(text: str) -> list[dict[str, object]]:
    found = [json.loads(line) for line in text.splitlines()]
    return [{key: value for key, value in row.items() if key != "time"} for row in found]


def test_a_training_says_lines_and_in_json_its_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path, Workers())
    run.add_metrics(ROW)
    run.say("step 3")
    assert capsys.readouterr().out == "step 3\n"
    choose_format("json")
    run.add_metrics(ROW)
    run.say("step 3")
    assert rows(capsys.readouterr().out) == [{"event": "train", **ROW}, {"event": "message", "text": "step 3"}]
    assert (tmp_path / LOG).read_text() == "step 3\n" * 2, "log.txt is for people in every format"
    RunFolder(tmp_path, Workers(rank=1, num=2)).say("not the first")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("log_format", ["plain", "json"])
def test_what_workers_write_is_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    choose_format(log_format)  # type: ignore[arg-type]
    (tmp_path / LOG).write_text("of an earlier start\n")
    (tmp_path / METRICS).write_text((json.dumps(ROW) + "\n") * 2)
    with printed_log(tmp_path):
        (tmp_path / METRICS).write_text(json.dumps(ROW) + "\n")  # a start drops rows that are measured again
        with (tmp_path / LOG).open("a") as log:
            log.write("starts\nstep 3 of é\nhalf a li")
    out = capsys.readouterr().out
    if log_format == "plain":
        assert out == "starts\nstep 3 of é\n"
    else:
        assert rows(out) == [{"event": "message", "text": "starts"}, {"event": "message", "text": "step 3 of é"}]


def test_in_json_a_row_is_an_event_and_no_message_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "16 px  step 3  12 images  loss 0.5000"
    run = RunFolder(tmp_path, Workers())
    run.add_metrics(ROW, line)
    assert capsys.readouterr().out == line + "\n"
    choose_format("json")
    run.add_metrics(ROW, line)
    with printed_log(tmp_path):
        with (tmp_path / LOG).open("a") as log:
            log.write(line + "\n")
        with (tmp_path / METRICS).open("a") as metrics:
            metrics.write(json.dumps(ROW) + "\n")
    assert rows(capsys.readouterr().out) == [{"event": "train", **ROW}] * 2
    assert (tmp_path / LOG).read_text() == (line + "\n") * 3


def test_metrics_that_workers_append_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choose_format("json")
    with printed_log(tmp_path):
        (tmp_path / METRICS).write_text(json.dumps(ROW) + "\n" + '{"kind": "tr')
    assert rows(capsys.readouterr().out) == [{"event": "train", **ROW}]


class Terminal(io.StringIO):
    """A stream that says that a person looks at it."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_how_far_a_training_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a resumed training too; the lines of the log stay as they are."""
    write_store(tmp_path / "features")
    config = tiny_config(tmp_path, images=24)
    assert main(config) == 0
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.stderr", terminal)
    assert main(replace(config, ladder=(replace(config.ladder[0], images=40),))) == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "alignment" in shown and "━" in shown and "40 of 40 images" in shown
    assert not re.search(r"\b(0|4|8|12|16|20) of 40 images", shown), "it starts where the earlier start ended"
    assert "step 10  40 images" in (Path(config.run_folder) / LOG).read_text()


def test_a_bar_follows_workers_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", terminal)
    with printed_log(tmp_path, stage="alignment", images=24):
        rows = [{"kind": "train", "images_seen": seen} for seen in (12, 16)] + [{"kind": "validation", "images_seen": 8}]
        (tmp_path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "16 of 24 images" in terminal.getvalue()
