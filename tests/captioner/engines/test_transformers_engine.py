"""A caption belongs to its image and prompt alone; whatever LLaVA it is, and however little memory there is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captioner.engines.generation import Generation, GenerationSettings
from captioner.engines.model_source import MINI, resolve_model
from captioner.engines.transformers_engine import TransformersEngine
from foundry.errors import UserError
from tests.captioner.tiny_llava import save_tiny_llava, save_tiny_next, save_tiny_onevision

PROMPTS = ["Describe this image", "the large owl at left of a small key on the red background", "owl"] * 2
KEYS = [f"key-{number}" for number in range(6)]


def images(count: int = 6) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (32 + 5 * number, 48, 3), dtype=np.uint8) for number in range(count)]


def engine(folder: Path, **settings: Any) -> TransformersEngine:
    return TransformersEngine(
        resolve_model(str(folder)),
        GenerationSettings(**{"dtype": "float32", "max_new_tokens": 12, "batch_size": 4, **settings}),
    )


def assert_equal(found: list[Generation], expected: list[Generation]) -> None:
    """Equal but for the rounding of log-probabilities, which the shape of a batch changes."""
    for one, other in zip(found, expected, strict=True):
        assert (one.text, one.finish_reason, one.num_tokens) == (other.text, other.finish_reason, other.num_tokens)
        assert one.mean_logprob == pytest.approx(other.mean_logprob, abs=1e-4)
        assert one.min_logprob == pytest.approx(other.min_logprob, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("save", [save_tiny_llava, save_tiny_next, save_tiny_onevision])
def test_a_caption_does_not_depend_on_its_batch(tmp_path: Path, save: Any, temperature: float) -> None:
    model = engine(save(tmp_path), temperature=temperature, top_p=0.9)
    together = model.caption(images(), PROMPTS, KEYS)
    alone = [model.caption([image], [prompt], [key])[0] for image, prompt, key in zip(images(), PROMPTS, KEYS, strict=True)]
    assert_equal(together, alone)
    assert len({one.text for one in together}) > 1, "a model that says the same of everything proves nothing"


def test_log_probabilities_are_the_models_own(tiny_llava: Path) -> None:
    model = engine(tiny_llava)
    (said,) = model.caption(images(1), PROMPTS[:1], KEYS[:1])
    inputs = model._inputs(images(1), PROMPTS[:1])
    start = inputs["input_ids"].shape[1]
    answer = torch.tensor([model.processor.tokenizer(said.text, add_special_tokens=False).input_ids])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.inference_mode():
        logits = model.model(**inputs).logits[:, start - 1 : -1]
    logprobs = logits.log_softmax(-1).gather(2, answer[..., None])
    assert said.finish_reason == "length" and said.num_tokens == 12
    assert said.mean_logprob == pytest.approx(float(logprobs.mean()), abs=1e-4)
    assert said.min_logprob == pytest.approx(float(logprobs.min()), abs=1e-4)


def test_sampling_depends_on_seed_and_key(tiny_llava: Path) -> None:
    same = [images()[0]] * 6
    prompt = [PROMPTS[0]] * 6
    said = engine(tiny_llava, temperature=1.5).caption(same, prompt, KEYS)
    assert len({one.text for one in said}) > 1
    again = engine(tiny_llava, temperature=1.5).caption(same, prompt, KEYS)
    assert_equal(said, again)
    other = engine(tiny_llava, temperature=1.5, seed=1).caption(same, prompt, KEYS)
    assert [one.text for one in other] != [one.text for one in said]


def test_an_end_token_ends_a_caption(tiny_llava: Path) -> None:
    model = engine(tiny_llava)
    (said,) = model.caption(images(1), PROMPTS[:1], KEYS[:1])
    second = model.processor.tokenizer(said.text).input_ids[1]
    model.end_ids = [second]
    (cut,) = model.caption(images(1), PROMPTS[:1], KEYS[:1])
    assert (cut.finish_reason, cut.num_tokens) == ("stop", 2)
    assert cut.text == said.text.split()[0]


def test_memory_that_runs_out_halves_the_batch(tiny_llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = engine(tiny_llava)
    expected = model.caption(images(), PROMPTS, KEYS)
    sizes: list[int] = []
    caption_batch = TransformersEngine._caption_batch

    def at_most_two(self: TransformersEngine, batch: Any, prompts: Any, keys: Any, **how: Any) -> list[Generation]:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return caption_batch(self, batch, prompts, keys, **how)

    monkeypatch.setattr(TransformersEngine, "_caption_batch", at_most_two)
    assert_equal(model.caption(images(), PROMPTS, KEYS), expected)
    assert_equal(model.caption(images(), PROMPTS, KEYS, one_by_one=True), expected)
    assert_equal(model.caption(images(), PROMPTS, KEYS), expected)
    assert sizes == [4, *[2] * 3, *[1] * 6, *[2] * 3], "what memory holds is found out once"


def test_greedy_is_greedy_whatever_the_checkpoint_would_rather_do(tmp_path: Path) -> None:
    plain, other = save_tiny_llava(tmp_path / "plain"), save_tiny_llava(tmp_path / "other")
    file = other / "generation_config.json"
    wishes = {"repetition_penalty": 1.8, "no_repeat_ngram_size": 2, "min_new_tokens": 20, "suppress_tokens": [5, 6, 7]}
    file.write_text(json.dumps(json.loads(file.read_text()) | wishes))
    assert_equal(engine(other).caption(images(), PROMPTS, KEYS), engine(plain).caption(images(), PROMPTS, KEYS))


def test_the_end_tokens_of_the_checkpoint_end_a_caption(tmp_path: Path) -> None:
    file = save_tiny_llava(tmp_path) / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [1, 9]}))
    assert engine(tmp_path).end_ids == [1, 9]


def test_a_model_is_tried_out_with_one_token_and_computes_no_step_more_than_it_says(tiny_llava: Path) -> None:
    model, steps = engine(tiny_llava), list[int]()
    model.model.register_forward_pre_hook(lambda *_: steps.append(1))
    model.check(images(1)[0], "owl")
    assert len(steps) == 1
    (said,) = model.caption(images(1), PROMPTS[:1], KEYS[:1])
    assert len(steps) == 1 + said.num_tokens == 1 + 12


def test_images_and_prompts_of_similar_size_share_a_batch(tiny_llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = engine(tiny_llava, batch_size=2), list[list[str]]()
    expected = [model.caption([image], [prompt], [key])[0] for image, prompt, key in zip(images(), PROMPTS, KEYS, strict=True)]
    caption_batch = TransformersEngine._caption_batch

    def noted(self: TransformersEngine, batch: Any, prompts: Any, keys: Any, **how: Any) -> list[Generation]:
        batches.append(list(keys))
        return caption_batch(self, batch, prompts, keys, **how)

    monkeypatch.setattr(TransformersEngine, "_caption_batch", noted)
    order = [4, 1, 5, 0, 3, 2]
    prompts, keys = [PROMPTS[index] for index in order], [KEYS[index] for index in order]
    assert_equal(model.caption([images()[index] for index in order], prompts, keys), [expected[index] for index in order])
    assert batches == [KEYS[0:2], KEYS[2:4], KEYS[4:6]], "those of one size, whatever their order"


def test_a_context_too_short_for_an_image_and_its_caption_is_named(tiny_llava: Path) -> None:
    image = images(1)[0]
    engine(tiny_llava).check(image, "owl")
    lower = r"take \d+ tokens, and a caption up to 5000 more; the context has 2048: lower generation\.max_new_tokens"
    with pytest.raises(UserError, match=lower):
        engine(tiny_llava, max_new_tokens=5000).check(image, "owl")
    with pytest.raises(UserError, match=r"the context has 2048: take a shorter prompt \(a JSON schema is part of it\)"):
        engine(tiny_llava).check(image, "owl " * 2048)


def test_a_question_that_exceeds_the_context_fails_alone(tiny_llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, long = engine(tiny_llava, batch_size=6), "owl " * 2048
    kept = [0, 2, 3, 5]
    prompts = [prompt if row in kept else long for row, prompt in enumerate(PROMPTS)]
    said = model.caption(images(), prompts, KEYS)
    assert [bool(one.failure) for one in said] == [row not in kept for row in range(6)]
    assert "tokens, and a caption up to 12 more; the context has 2048" in said[1].failure and not said[1].text
    expected = [model.caption([images()[row]], [PROMPTS[row]], [KEYS[row]])[0] for row in kept]
    assert_equal([said[row] for row in kept], expected)
    fits = said[0].num_input_tokens + 12
    monkeypatch.setattr(model, "_context", fits)
    assert not model.caption(images(1), PROMPTS[:1], KEYS[:1])[0].failure
    monkeypatch.setattr(model, "_context", fits - 1)
    assert model.caption(images(1), PROMPTS[:1], KEYS[:1])[0].failure


def test_other_errors_are_not_taken_for_a_lack_of_memory(tiny_llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> list[Generation]:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(TransformersEngine, "_caption_batch", broken)
    with pytest.raises(RuntimeError, match="size mismatch"):
        engine(tiny_llava).caption(images(), PROMPTS, KEYS)


def test_a_folder_is_known_by_its_content(tmp_path: Path) -> None:
    one, other = save_tiny_llava(tmp_path / "one"), save_tiny_llava(tmp_path / "other", seed=1)
    assert resolve_model(str(one)).revision == resolve_model(str(one)).revision != resolve_model(str(other)).revision


def test_the_size_of_a_model_is_known_before_it_is_loaded(tiny_llava: Path) -> None:
    assert resolve_model(str(tiny_llava)).num_parameters == engine(tiny_llava).model.num_parameters()


def test_what_is_not_a_model_of_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="is a llama model, which cannot read images"):
        resolve_model(str(tmp_path))
    with pytest.raises(UserError, match="no config.json"):
        resolve_model(str(tmp_path.parent))
    assert resolve_model("mini").path_or_id == str(MINI)


def test_all_bad_settings_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"batch_size must be 1 or more; top_p must be"):
        GenerationSettings(batch_size=0, top_p=0)
