"""The command loads everything before it serves, says where it is, and tells in one line what is wrong."""

from pathlib import Path

import pytest
import uvicorn

from foundry.command_line import run_command
from model.serve import ServeConfig, main
from tests.model.tiny_parts import save_tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_checkpoint(tmp_path_factory.mktemp("serve"), objective="rectified_flow"))


def run(*arguments: str) -> int:
    return run_command(ServeConfig, main, prog="python -m model.serve", example="", argv=[*arguments, "--port", "0"])


def test_it_says_where_it_serves_once_it_has_drawn(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)
    assert run("--checkpoint", checkpoint, "--dtype", "float32", "--weights", "int8") == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("checkpoint on cpu in float32: http://127.0.0.1:") and first.endswith("/v1")
    assert last == "stopped after 0 images"
    rewriter = ["--rewrite.model", "some", "--rewrite.url", "http://127.0.0.1:1/v1"]  # not asked before a request is
    assert run("--checkpoint", checkpoint, "--name", "owls", *rewriter) == 0
    assert capsys.readouterr().out.startswith("owls on cpu in ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0 can be reached from other machines: name the variable of a key for them, or its file"),
        (["--key_file", "none"], "none cannot be read"),
        (["--key_variable", "NONE_SET"], "the environment variable NONE_SET is not set: export it (--key_variable)"),
        (["--lora", "owl"], "expected NAME=PATH or NAME=PATH:SCALE"),
        (["--lora", "owl=nowhere"], "nowhere: expected an adapter"),
        (["--limits.max_images", "0"], "max_images must be 1 or more, found 0"),
        (["--grace_s", "-1"], "grace_s 0 or more"),
        (["--sampler", "magic"], "sampler must be one of"),
        (["--sampler", "heun"], "sampler must be one of dpm-solver++, ddim"),
        (["--text_encoder", "./none"], "there is no text_encoder in none"),
        (["--rewrite.model", "./none"], "there is no rewriter in none"),
    ],
)
def test_what_is_wrong_is_told_before_it_serves(
    checkpoint: str, capsys: pytest.CaptureFixture[str], *, arguments: list[str], message: str
) -> None:
    assert run("--checkpoint", checkpoint, *arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_a_checkpoint_is_asked_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("--device", "cpu") == 2
    assert (
        "--checkpoint is missing: type --checkpoint FOLDER for your own network, or --checkpoint mini"
        in capsys.readouterr().err
    )
