"""The shipped models of the small world: tokenizers that lose nothing, and a llava-mini that sees."""

import io
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration, T5Tokenizer

from examples.openmoji.composition import Scene, draw_scene, render
from examples.openmoji.descriptions import describe
from examples.openmoji.evaluate_captions import EvaluateConfig, caption_scenes, evaluate
from examples.openmoji.llava_mini import PROMPTS, chat_text
from examples.openmoji.scene_files import jpeg_bytes
from examples.openmoji.truth import judge, truth_of

ROOT = Path(__file__).resolve().parents[2]
LLAVA, T5 = ROOT / "captioner/pretrained/llava-mini", ROOT / "model/pretrained/t5-mini"
_NUM_SCENES = 24
ENGLISH = [
    "A photo-realistic castle by the sea at sunset, 35 mm; isn't it lovely?",
    "#1 {curly} <angle> [square] 100% ~ \\ ^ | @home & co. $5 = 4 * 1.25",
    "",
]


def _unseen(count: int) -> list[Scene]:
    return [draw_scene(seed=77, index=index, split="unseen") for index in range(count)]


@cache
def _captions(count: int, batch_size: int) -> list[str]:
    return caption_scenes(EvaluateConfig(model=str(LLAVA), batch_size=batch_size), _unseen(_NUM_SCENES)[:count])


def test_the_t5_tokenizer_is_a_plain_t5_tokenizer_of_modest_size() -> None:
    tokenizer = AutoTokenizer.from_pretrained(T5)
    assert isinstance(tokenizer, T5Tokenizer)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert 1000 <= len(tokenizer) <= 2000
    assert tokenizer("").input_ids == [tokenizer.eos_token_id]


def test_the_t5_tokenizer_loses_nothing_and_fits_120_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(T5)
    texts = [describe(draw_scene(seed=8, index=index), seed=8) for index in range(400)]
    for text in [t for some in texts for t in (some.dense, some.medium, some.short, some.alt_text)] + ENGLISH:
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert max(len(tokenizer(some.dense).input_ids) for some in texts) <= 110


def test_llava_minis_tokenizer_loses_nothing() -> None:
    tokenizer = AutoTokenizer.from_pretrained(LLAVA)
    for text in [*ENGLISH, *PROMPTS.values(), "naïve 图像 🦉"]:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert tokenizer.padding_side == "left"


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_processor_writes_what_training_saw(prompt: str) -> None:
    processor = AutoProcessor.from_pretrained(LLAVA)
    scene = _unseen(1)[0]
    question = [{"type": "image", "image": Image.fromarray(render(scene))}, {"type": "text", "text": PROMPTS[prompt]}]
    inputs = processor.apply_chat_template(
        [[{"role": "user", "content": question}]],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    trained = processor.tokenizer(chat_text(PROMPTS[prompt]), add_special_tokens=False).input_ids
    assert inputs["input_ids"].tolist() == [trained]
    pixels = torch.from_numpy(render(scene)).permute(2, 0, 1).float() / 127.5 - 1
    torch.testing.assert_close(inputs["pixel_values"][0], pixels, atol=1e-5, rtol=0)


def test_llava_mini_is_a_plain_llava_of_15_megabytes_at_most() -> None:
    model = AutoModelForImageTextToText.from_pretrained(LLAVA, dtype=torch.float32)
    assert isinstance(model, LlavaForConditionalGeneration)
    assert sum(path.stat().st_size for path in LLAVA.rglob("*")) <= 15e6
    config = model.generation_config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    assert not config.do_sample


def test_llava_mini_describes_scenes_it_has_never_seen() -> None:
    figures = judge(_captions(_NUM_SCENES, _NUM_SCENES), [truth_of(scene) for scene in _unseen(_NUM_SCENES)])
    assert figures.object_f1 > 0.9 and figures.background > 0.9 and figures.place > 0.9
    assert figures.hallucination_rate < 0.2


@pytest.mark.slow
def test_llava_mini_keeps_its_bar_on_many_unseen_scenes() -> None:
    """F1 .97, background .99, place .95, absent objects in 6 % at most, on more scenes than the fast test has time for."""
    scenes = _unseen(400)
    captions = caption_scenes(EvaluateConfig(model=str(LLAVA), batch_size=50), scenes)
    figures = judge(captions, [truth_of(scene) for scene in scenes])
    assert figures.object_f1 >= 0.97 and figures.background >= 0.99 and figures.place >= 0.95
    assert figures.hallucination_rate <= 0.06


def test_a_caption_does_not_depend_on_its_batch() -> None:
    assert _captions(_NUM_SCENES, _NUM_SCENES)[:5] == _captions(5, 2)


def test_shorter_prompts_give_shorter_captions() -> None:
    scenes = _unseen(6)
    truths = [truth_of(scene) for scene in scenes]
    dense, medium, short = (
        caption_scenes(EvaluateConfig(model=str(LLAVA), prompt=prompt), scenes) for prompt in ("dense", "medium", "short")
    )
    assert sum(map(len, short)) < sum(map(len, medium)) < sum(map(len, dense)) / 2
    assert judge(medium, truths).object_f1 > 0.8 and judge(short, truths).object_f1 > 0.8


def test_evaluation_prints_what_was_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    config = EvaluateConfig(model=str(LLAVA), count=4, batch_size=4)
    figures = evaluate(config)
    assert figures.num_captions == 4
    assert (figures.object_f1 < 1) == ("wrong:" in capsys.readouterr().out)


def test_larger_images_are_seen_too() -> None:
    scenes = _unseen(8)
    enlarged = [Image.open(io.BytesIO(jpeg_bytes(render(scene)))).resize((256, 256)) for scene in scenes]
    assert enlarged[0].size == (256, 256)
    processor = AutoProcessor.from_pretrained(LLAVA)
    assert processor(images=enlarged, text=["<image>"] * 8, return_tensors="pt")["pixel_values"].shape == (8, 3, 64, 64)
