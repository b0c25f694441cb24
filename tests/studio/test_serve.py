"""The command: what it opens, what it refuses in one line, and what it says where its extra is missing."""

import sys
from pathlib import Path
from typing import Any

import pytest

from foundry.errors import UserError
from studio.serve import StudioConfig, main
from studio.workplace import open_workplace
from tests.studio.world import write_training


def _failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    from foundry.command_line import run_command

    code = run_command(StudioConfig, main, prog="studio", example="studio RUN", positional=("open",), argv=arguments)
    error = capsys.readouterr().err.strip()
    assert code == 2 and "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--port", "70000", "x"], "port must be 0 to 65535"),
        (["--out", "x"], "expected a run, a data set or a training to open"),
        (["--host", "0.0.0.0", "--port", "0", "x"], "can be reached from other machines"),
        (["--port", "0", "nothing-here"], "nothing-here is no captioning run"),
    ],
)
def test_what_cannot_be_opened_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], reason: str
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", sys)  # whether it is installed is another test's question
    assert reason in _failure(capsys, *arguments)


def test_without_its_extra_the_studio_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def needed(name: str) -> list[str]:
        return ['gradio>=6; extra == "studio"'] if name == "t2i-foundry" else []

    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("importlib.metadata.requires", needed)
    error = _failure(capsys, "--port", "0", str(tmp_path))
    assert 'this needs gradio, which is not installed: pip install "t2i-foundry[studio]"' in error


def test_folders_are_told_apart_by_what_is_in_them(run: str, tmp_path: Path) -> None:
    training = write_training(tmp_path / "runs" / "alignment", rows=2)
    options: dict[str, Any] = {"out": tmp_path / "out", "cache": tmp_path / "cache"}
    with open_workplace([run, str(tmp_path / "runs")], checkpoints=["mini", "mini"], **options) as place:
        assert [source.url for source in place.sources] == [run]
        assert place.trainings == [training]
        assert place.painter.checkpoints == ("mini",)  # the training has no checkpoint yet
    with pytest.raises(UserError, match="no training"), open_workplace([str(tmp_path)], **options):
        pass
