"""Progress in its three forms and in a notebook: the same figures as a bar, as lines and as JSON."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from foundry.reporting import progress
from foundry.reporting.lines import choose_format
from foundry.reporting.progress import Bar, tracked

ROOT = Path(__file__).resolve().parents[3]
WORK = """
import sys, time
from foundry.reporting.lines import choose_format, say
from foundry.reporting.progress import Bar
choose_format(sys.argv[1])
with Bar("captioning", total=4) as bar:
    for number in range(4):
        time.sleep(0.05)
        bar.advance(1, tokens_per_s=100.0 + number, rejected=number // 2)
        say(f"line {number}")
print("answer")
"""


@pytest.fixture(autouse=True)
def _same_format_after() -> Iterator[None]:
    yield
    choose_format("auto")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in its only item, which a test sets."""
    now = [100.0]
    monkeypatch.setattr("foundry.reporting.progress.time.perf_counter", lambda: now[0])
    return now


def work(clock: list[float]) -> None:
    """25 s of work on 100 pieces, after 5 s of start-up."""
    with Bar("captioning", total=100) as bar:
        clock[0] += 5
        bar.restart()
        for number in range(5):
            clock[0] += 5
            bar.advance(20, tokens_per_s=64.4, rejected=number)


def test_a_log_has_a_line_every_ten_seconds(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    choose_format("plain")
    work(clock)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "captioning: 20 of 100 images, 4 images/s, 20 s left, 64 tokens/s, 0 rejected",
        "captioning: 60 of 100 images, 4 images/s, 10 s left, 64 tokens/s, 2 rejected",
        "captioning: 100 of 100 images, 4 images/s, 64 tokens/s, 4 rejected",
        "captioning: 100 of 100 images, 4 images/s, 64 tokens/s, 4 rejected",
    ]


def test_work_that_is_quick_leaves_no_line(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    choose_format("plain")
    with Bar("captioning", total=1) as bar:
        clock[0] += 3
        bar.advance()
    assert tuple(capsys.readouterr()) == ("", "")


def test_json_has_the_same_figures(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    choose_format("json")
    work(clock)
    rows = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [row["event"] for row in rows] == ["progress", "progress", "progress", "progress_end"]
    first, last = rows[0], rows[-1]
    assert {key: first[key] for key in ("what", "unit", "done", "total", "per_s", "left_s", "rejected")} == {
        "what": "captioning",
        "unit": "image",
        "done": 20,
        "total": 100,
        "per_s": 4.0,
        "left_s": 20.0,
        "rejected": 0,
    }
    assert (last["done"], last["left_s"], last["seconds"], last["is_done"]) == (100, 0.0, 25.0, True)


def test_json_says_that_work_ended_early(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    choose_format("json")
    with suppress(ValueError), Bar("drawing") as bar:
        bar.advance()
        raise ValueError("broken")
    (row,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (row["event"], row["is_done"], row["done"], row["total"], row["left_s"]) == ("progress_end", False, 1, None, None)


def on_terminal(log_format: str) -> tuple[str, str]:
    """What the work prints to a terminal on stderr, and to a file on stdout."""
    reader, terminal = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"}
    command = [sys.executable, "-c", WORK, log_format]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, cwd=ROOT, env=environment, text=True) as process:
        os.close(terminal)
        shown = io.BytesIO()
        while chunk := _read(reader):
            shown.write(chunk)
        assert process.stdout is not None
        out = process.stdout.read()
    os.close(reader)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue().decode()), out


def _read(reader: int) -> bytes:
    try:
        return os.read(reader, 4096)
    except OSError:  # the other end is closed
        return b""


def test_a_terminal_shows_a_bar_and_the_answer_stays_apart() -> None:
    shown, out = on_terminal("auto")
    assert "━" in shown and "captioning" in shown
    assert "4 of 4 images" in shown and "103 tokens/s, 1 rejected" in shown
    assert out == "line 0\nline 1\nline 2\nline 3\nanswer\n"


def test_a_terminal_shows_no_bar_where_lines_are_asked_for() -> None:
    shown, out = on_terminal("plain")
    assert shown == "" and out.endswith("answer\n")


class Display:
    """The display of a notebook's front end."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []

    def __call__(self, data: dict[str, str], *, raw: bool, display_id: bool) -> "Display":
        assert raw and display_id
        return self

    def update(self, data: dict[str, str], *, raw: bool) -> None:
        self.shown.append(data)


def test_a_notebook_shows_a_bar(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    front_end = Display()
    monkeypatch.setattr("IPython.display.display", front_end)
    monkeypatch.setattr(progress, "_is_notebook", lambda: True)
    with Bar("<captions>", total=4) as bar:
        for _ in range(4):
            clock[0] += 1
            bar.advance()
    assert capsys.readouterr().err == ""
    assert len(front_end.shown) >= 4
    assert '<progress value="4" max="4">' in front_end.shown[-1]["text/html"]
    assert "&lt;captions&gt;" in front_end.shown[-1]["text/html"]
    assert front_end.shown[-1]["text/plain"] == "<captions>: 4 of 4 images, 1 images/s"


def test_a_kernel_is_a_notebook_and_a_test_is_none() -> None:
    assert not progress._is_notebook()
    code = "from foundry.reporting.progress import _is_notebook; from ipykernel.zmqshell import ZMQInteractiveShell; "
    code += "shell = ZMQInteractiveShell.instance(); shell.kernel = object(); print(_is_notebook())"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "True"


def test_items_are_tracked_where_they_take_long(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    choose_format("json")
    assert list(tracked("abc", "quick")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
    for _ in tracked("abc", "slow", total=3):
        clock[0] += 6
    rows = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(row["event"], row["done"]) for row in rows] == [("progress", 3), ("progress_end", 3)]


def test_nothing_is_shown_where_nothing_is_asked_for(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    choose_format("json")
    with Bar("drawing", total=1, shown=False) as bar:
        clock[0] += 60
        bar.advance()
    assert capsys.readouterr().err == ""
