"""Lines of commands: for people, or as JSON with an event, a time and numbers; answers are the same in both."""

import json
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from foundry.command_line import run_command
from foundry.errors import UserError
from foundry.reporting.lines import OUTPUT, choose_format, report, say


@pytest.fixture(autouse=True)
def _same_format_after() -> Iterator[None]:
    yield
    choose_format("auto")


def rows(text: str) -> list[dict[str, object]]:
    found = [json.loads(line) for line in text.splitlines()]
    for row in found:
        assert abs((datetime.now().astimezone() - datetime.fromisoformat(str(row.pop("time")))).total_seconds()) < 60
    return found


def test_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    say("4 images")
    say("warning: slow", err=True)
    report("train", loss=1.0)
    assert tuple(capsys.readouterr()) == ("4 images\n", "warning: slow\n")


def test_json_has_an_event_for_each_line(capsys: pytest.CaptureFixture[str]) -> None:
    choose_format("json")
    say("4 images: all\nof them")
    say("warning: slow", err=True)
    say("error: ends", err=True)
    report("train", loss=math.nan, step=3, worst=[math.inf, 1.0], keys={"é": None})
    out, err = capsys.readouterr()
    assert rows(out) == [
        {"event": "message", "text": "4 images: all\nof them"},
        {"event": "train", "loss": None, "step": 3, "worst": [None, 1.0], "keys": {"é": None}},
    ]
    assert rows(err) == [{"event": "warning", "text": "slow"}, {"event": "error", "text": "ends"}]


def test_what_libraries_say_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    choose_format("json")
    logging.getLogger("some.library").warning("skipped: %s", "a.tar")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", stacklevel=1)
    first, second = rows(capsys.readouterr().err)
    assert first == {"event": "warning", "text": "skipped: a.tar", "logger": "some.library"}
    assert second["event"] == "warning" and "old" in str(second["text"])
    choose_format("auto")
    assert not [handler for handler in logging.getLogger().handlers if type(handler).__name__ == "_JsonHandler"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a command for this test."""

    steps: int = 1
    """Number of steps."""


def main(config: Config) -> int:
    """Says what it does, and answers."""
    say(f"{config.steps} steps")
    print("answer")
    if config.steps > 2:
        raise UserError("too many", setting="steps")
    return 0


def command(*arguments: str) -> int:
    return run_command(Config, main, prog="python -m nothing", example="python -m nothing --steps 2", argv=arguments)


def test_every_command_has_the_option(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command() == 0
    assert capsys.readouterr().out == "1 steps\nanswer\n"
    assert command("--log_format", "json", "--steps", "3") == 2
    out, err = capsys.readouterr()
    message, answer = out.splitlines()
    assert rows(message) == [{"event": "message", "text": "3 steps"}] and answer == "answer"
    assert rows(err) == [{"event": "error", "text": "too many (--steps)"}]
    path = tmp_path / "config.yaml"
    path.write_text("log_format: json\nsteps: 2\n")
    assert command("--config", str(path)) == 0
    assert rows(capsys.readouterr().out.splitlines()[0]) == [{"event": "message", "text": "2 steps"}]
    assert command("--log_format", "plain") == 0 and OUTPUT.format == "plain"


def test_wrong_options_are_said_in_the_format_that_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--log_format", "json", "--step", "3") == 2
    assert rows(capsys.readouterr().err) == [{"event": "error", "text": "unknown option step; did you mean --steps?"}]
    assert command("--log_format", "xml") == 2
    assert "error: --log_format: expected" in capsys.readouterr().err
