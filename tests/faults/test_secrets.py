"""Secrets: keys and tokens are in no file, log, error, record or argument of a process."""

import json
import re
from pathlib import Path

import pytest

from captioner.config import CaptionConfig
from captioner.run import main
from foundry.command_line import run_command
from foundry.errors import UserError
from foundry.http.server import read_server_key
from tests.captioner.conftest import save_pictures
from tests.chat_server import Reply, fails, judge_server, says
from tests.faults.conftest import Tally
from tests.in_this_process import commands_here

SECRETS = {
    "CAPTIONER_KEY": "sk-canary-of-the-endpoint",
    "HF_TOKEN": "hf_canaryOfTheHub",
    "AWS_ACCESS_KEY_ID": "AKIACANARY",
    "AWS_SECRET_ACCESS_KEY": "canary/of/the/object/store",
    "WANDB_API_KEY": "canary-of-the-tracker",
}
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def check(said: str, where: str) -> None:
    told = [name for name, value in SECRETS.items() if value in said]
    assert not told, f"{where} tells {told}"


def _echo(status: int) -> Reply:
    """A server that repeats the key in its error."""
    reply = fails(status)
    return Reply(body=reply.body.replace("status", f"bad key {SECRETS['CAPTIONER_KEY']}"), status=status)


REPLIES = {
    "an answer that repeats it": says(f"An owl {SECRETS['CAPTIONER_KEY']} and a tree."),
    "a refusal of the key": _echo(401),
    "a refusal of the image": _echo(400),
    "no JSON": Reply(body=f"<html>{SECRETS['CAPTIONER_KEY']}</html>"),
    "another model's name": says("An owl.", model=SECRETS["CAPTIONER_KEY"]),
}


REFUSED = ("a refusal of the key", "a refusal of the image", "no JSON")
_OTHERS = [pytest.param(name, marks=pytest.mark.faults) for name in list(REPLIES)[1:]]


@pytest.mark.slow
@pytest.mark.parametrize("name", [next(iter(REPLIES)), *_OTHERS])
def test_a_run_tells_nobody_the_key(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], tally: Tally) -> None:
    images, run = save_pictures(tmp_path / "images", count=2), tmp_path / "run"
    with judge_server(lambda _body: REPLIES[name]) as server, commands_here():
        arguments = ["--images", str(images), "--out", str(run), "--model", "m", "--engine", "endpoint"]
        arguments += ["--endpoint.url", server.url, "--endpoint.key_variable", "CAPTIONER_KEY", "--endpoint.tries", "1"]
        arguments += ["--t5.tokenizer", "mini", "--ray.num_replicas", "1", "--max_rejected", "1", "--log_format", "json"]
        run_command(CaptionConfig, main, prog="python -m captioner.run", example="", argv=arguments)
    sent = [headers["Authorization"] for headers in server.headers]
    assert set(sent) == {f"Bearer {SECRETS['CAPTIONER_KEY']}"}, "the server gets it"
    said = capsys.readouterr()
    check(said.out + said.err, "the output")
    check(" ".join(arguments), "the command line")
    check(json.dumps(server.bodies), "the body of a request")
    files = [path for path in run.rglob("*") if path.is_file()]
    assert (run / "run.json") in files or name in REFUSED, "a run that was begun has a record"
    for path in files:
        check(_readable(path), str(path))
    tally("secrets", len(files) + 3)


def _readable(path: Path) -> str:
    """The content of a file; of Parquet, whose pages are compressed, the values too."""
    if path.suffix != ".parquet":
        return path.read_bytes().decode("utf-8", "replace")
    import pyarrow.parquet as pq

    return str(pq.read_table(path).to_pylist()) + path.read_bytes().decode("latin-1")


def test_no_option_takes_a_key_itself(tally: Tally) -> None:
    """It would be in `ps`, in the history of the shell and in the record of the run."""
    pages = list((ROOT / "docs" / "reference" / "commands").glob("*.md"))
    options = {
        found.rstrip(".") for page in pages for found in re.findall(r"--[\w.]*(?:key|secret|password)[\w.]*", page.read_text())
    }
    assert options and not [one for one in options if not one.endswith(("key_variable", "key_file"))], options
    tally("secrets", len(options))


@pytest.mark.parametrize("url", ["https://me:canary-word@there/v1", "https://there/v1?key=canary-word"])
def test_an_address_with_a_password_is_refused_without_telling_it(url: str, tally: Tally) -> None:
    from captioner.engines.endpoint_settings import EndpointSettings

    with pytest.raises(ValueError, match="key_variable") as error:
        EndpointSettings(url=url)
    assert "canary-word" not in str(error.value)
    tally("secrets", 1)


@pytest.mark.parametrize("content", ["canary-word\x00", "canary-wörd", "canary-word\nmore"])
def test_a_key_that_is_none_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, tally: Tally) -> None:
    (tmp_path / "key").write_text(content)
    with pytest.raises(UserError) as error:
        read_server_key(None, str(tmp_path / "key"), host="127.0.0.1")
    assert "canary" not in str(error.value)
    tally("secrets", 1)
