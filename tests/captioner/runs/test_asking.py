"""An answer that does not follow its schema is asked for again, and kept where the longer question has none."""

from pathlib import Path

import numpy as np
import pytest

from captioner.engines.generation import GenerationSettings
from captioner.engines.model_source import resolve_model
from captioner.engines.transformers_engine import TransformersEngine
from captioner.prompts import Prompt
from captioner.runs.asking import ask

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
