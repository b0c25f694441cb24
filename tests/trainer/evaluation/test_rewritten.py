"""Rewritten prompts in an evaluation: every score says so, both prompts are kept, and figures do not mix with others."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from foundry.command_line import run_command
from tests.chat_server import JudgeServer, Reply, judge_server, says
from tests.model.tiny_parts import save_tiny_checkpoint
from trainer import evaluate
from trainer.evaluation.config import EvaluateConfig

TEXT = "a blue key on the left"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("rewritten"))


@pytest.fixture(scope="module")
def server() -> Iterator[JudgeServer]:
    def reply(body: dict[str, Any]) -> Reply:
        prompt = body["messages"][-1]["content"].rpartition("Prompt: ")[2]
        return says(TEXT if prompt == "a blue key" else "a key", model="m")

    with judge_server(reply) as running:
        yield running


@pytest.fixture(scope="module")
def evaluated(checkpoint: Path, server: JudgeServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation") / "out"
    assert _run(checkpoint, out, *_rewritten_by(server)) == 0
    return out


def _rewritten_by(server: JudgeServer) -> list[str]:
    return ["--rewrite.model=m", f"--rewrite.url={server.url}"]


def _run(checkpoint: Path, out: Path, *arguments: str, benchmark: str = "toy_benchmark") -> int:
    argv = [f"--benchmark=tests.trainer.{benchmark}", f"--checkpoint={checkpoint}", f"--out={out}"]
    argv += ["--sampling.num_inference_steps=1", *arguments]
    return run_command(EvaluateConfig, evaluate.main, prog="python -m trainer.evaluate", example="", argv=argv)


def test_summary_page_and_results_say_which_prompts_were_drawn(evaluated: Path) -> None:
    reason = "the rewritten prompt no longer says: red, owl"
    said = f"1 of 3 prompts rewritten by m; drawn as written: 2, the first: a red owl ({reason})"
    for name in ("summary.md", "page.html"):
        assert said in (evaluated / name).read_text()
    summary = json.loads((evaluated / "summary.json").read_text())
    assert summary["prompts"] == {"statement": f"prompts: {said}", "rewritten": {"a blue key": TEXT}}
    assert f"drawn as: {TEXT}" in (evaluated / "page.html").read_text()
    rows = pq.read_table(evaluated / "results.parquet").to_pylist()
    found = {(row["prompt"], row["images"]): row["rewritten_prompt"] for row in rows}
    assert found["a blue key", "generated"] == TEXT
    assert {text for key, text in found.items() if key != ("a blue key", "generated")} == {None}


def test_the_same_command_asks_and_draws_nothing_again(
    evaluated: Path, checkpoint: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.bodies.clear()
    assert _run(checkpoint, evaluated, *_rewritten_by(server)) == 0
    assert server.bodies == [] and "0 images drawn" in capsys.readouterr().out


def test_without_rewriting_the_folder_is_refused(evaluated: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(checkpoint, evaluated) == 2
    assert "holds another evaluation (rewriter differ): give another folder (--out)" in capsys.readouterr().err


def test_images_of_a_folder_say_it_themselves(evaluated: Path, tmp_path: Path) -> None:
    argv = ["--benchmark=tests.trainer.toy_benchmark", f"--images={evaluated / 'images'}", f"--out={tmp_path / 'out'}"]
    assert run_command(EvaluateConfig, evaluate.main, prog="", example="", argv=argv) == 0
    assert "prompts: 1 of 3 rewritten, as the files of the images say" in (tmp_path / "out" / "summary.md").read_text()


def test_published_figures_are_not_compared(checkpoint: Path, server: JudgeServer, tmp_path: Path) -> None:
    assert _run(checkpoint, tmp_path / "out", *_rewritten_by(server), benchmark="rich_benchmark") == 0
    scores = json.loads((tmp_path / "out" / "summary.json").read_text())["scores"]
    published = [score["published"]["differences"] for score in scores if score["published"]]
    assert published and all("prompts rewritten by m" in differences for differences in published)


def test_images_that_are_drawn_already_cannot_be_rewritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--benchmark=tests.trainer.toy_benchmark", f"--images={tmp_path}", f"--out={tmp_path}", "--rewrite.model=mini"]
    assert run_command(EvaluateConfig, evaluate.main, prog="", example="", argv=argv) == 2
    assert "rewrite.model needs checkpoint" in capsys.readouterr().err
