"""An answer that does not follow its schema is asked for again, and kept where the longer question has none."""

import re
from pathlib import Path

import numpy as np
import pytest

from captioner.config import CaptionConfig
from captioner.engines.generation import GenerationSettings
from captioner.engines.model_source import resolve_model
from captioner.engines.transformers_engine import TransformersEngine
from captioner.prompts import Prompt
from captioner.run import main
from captioner.runs.asking import ask
from foundry.command_line import run_command
from tests.captioner.conftest import save_pictures


def test_a_schema_beyond_the_context_is_named_before_the_run_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = save_pictures(tmp_path / "images", count=1)
    arguments = ["--images", str(images), "--out", str(tmp_path / "run"), "--model", "mini", "--prompts", "structured"]
    assert run_command(CaptionConfig, main, prog="", example="", argv=arguments) == 2
    said = capsys.readouterr().err
    expected = (
        r"the prompt structured takes \d+ tokens without an image, \d+ of them for its JSON schema, and the context of mini "
    )
    assert re.search(expected + r"has 512: use a model with a longer context, or other prompts \(--prompts\)\n$", said), said
    assert not (tmp_path / "run").exists()


PROMPT = Prompt(name="q", text="a key", schema='{"type": "object"}')


def test_an_invalid_answer_stays_where_asking_again_exceeds_the_context(
    tiny_llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersEngine(resolve_model(str(tiny_llava)), GenerationSettings(dtype="float32", max_new_tokens=4))
    image, answers = np.full((56, 56, 3), 128, np.uint8), []

    def said(context: int) -> str:
        monkeypatch.setattr(engine, "_context", context)
        (one,) = ask(engine, [image], ["a key"], ["k"], prompt=PROMPT, one_by_one=False)
        answers.append(one)
        return one.failure

    assert "the context has 10" in said(10), "the first question"
    assert not said(answers[0].num_input_tokens + 4), "the second one"
    assert answers[1].text and answers[1].num_tokens == 4
    assert not said(2048) and answers[2].num_tokens == 12, "three answers"
