"""Each class of model that people caption with: a caption is that of its image and prompt, whatever else is in the batch."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from captioner.engines import transformers_engine
from captioner.engines.generation import Generation, GenerationSettings
from captioner.engines.model_source import resolve_model
from captioner.engines.transformers_engine import TransformersEngine, TransformersModel
from foundry.errors import UserError
from tests.captioner import tiny_llava, tiny_models

CLASSES: dict[str, Callable[..., Path]] = {
    "LLaVA 1.5": tiny_llava.save_tiny_llava,
    "LLaVA-NeXT": tiny_llava.save_tiny_next,
    "LLaVA-OneVision": tiny_llava.save_tiny_onevision,
    "Qwen2.5-VL": tiny_models.save_tiny_qwen2_5_vl,
    "Qwen3-VL": tiny_models.save_tiny_qwen3_vl,
    "InternVL": tiny_models.save_tiny_internvl,
    "Idefics3": tiny_models.save_tiny_idefics3,
    "SmolVLM": tiny_models.save_tiny_smolvlm,
    "Gemma 3": tiny_models.save_tiny_gemma3,
    "Florence-2": tiny_models.save_tiny_florence2,
}
SIZES = [(32, 48), (40, 40), (70, 33), (33, 90), (128, 128), (35, 36)]
"""Heights and widths."""
PROMPTS = ["Describe this image", "the large owl at left of a small key on the red background", "owl"] * 2
KEYS = [f"key-{number}" for number in range(6)]

IMAGE_TOKENS = {  # of an image of 64 x 64 and one of 32 x 64
    "LLaVA 1.5": (4, 4),
    "LLaVA-NeXT": (24, 14),
    "LLaVA-OneVision": (24, 14),
    "Qwen2.5-VL": (16, 8),
    "Qwen3-VL": (16, 8),
    "InternVL": (20, 12),
    "Idefics3": (20, 12),
    "SmolVLM": (20, 12),
    "Gemma 3": (4, 4),
    "Florence-2": (17, 17),
}


@pytest.fixture(scope="module", autouse=True)
def _num2words() -> Any:
    """SmolVLM's processor asks for this package, and spells the numbers of a video's frames with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", str)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a class's random model, made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = CLASSES[name](tmp_path_factory.mktemp("model"))
        return made[name]

    return folder


def pictures(sizes: list[tuple[int, int]]) -> list[npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]


def load(folder: Path, **settings: Any) -> TransformersEngine:
    generation = GenerationSettings(**{"dtype": "float32", "max_new_tokens": 8, "batch_size": 6, **settings})
    return TransformersModel(**vars(resolve_model(str(folder)))).load(generation)


def assert_equal(found: list[Generation], expected: list[Generation]) -> None:
    """Equal but for the rounding of log-probabilities, which the shape of a batch changes."""
    for one, other in zip(found, expected, strict=True):
        assert (one.text, one.finish_reason, one.num_tokens) == (other.text, other.finish_reason, other.num_tokens)
        assert (one.mean_logprob, one.min_logprob) == pytest.approx((other.mean_logprob, other.min_logprob), abs=1e-4)
        assert one.num_input_tokens == other.num_input_tokens


@pytest.mark.parametrize("name", CLASSES)
def test_a_caption_is_the_same_in_a_batch_and_alone(folders: Callable[[str], Path], name: str) -> None:
    engine, images = load(folders(name)), pictures(SIZES)
    together = engine.caption(images, PROMPTS, KEYS)
    alone = [engine.caption([image], [prompt], [key])[0] for image, prompt, key in zip(images, PROMPTS, KEYS, strict=True)]
    assert_equal(together, alone)
    of_one_prompt = engine.caption(images, PROMPTS[:1] * 6, KEYS)
    assert len({one.mean_logprob for one in of_one_prompt}) == 6, "a model that sees no image proves nothing"
    assert len({one.mean_logprob for one in engine.caption(images[:1] * 3, PROMPTS[:3], KEYS[:3])}) == 3


@pytest.mark.parametrize("name", CLASSES)
def test_rows_that_have_ended_leave_their_batch_and_change_no_other(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    engine, left = load(folders(name), temperature=20.0, max_new_tokens=12), 0  # so that captions differ

    def counted(state: dict[str, Any], kept: torch.Tensor) -> dict[str, Any]:
        nonlocal left
        left += len(state["attention_mask"]) - len(kept)
        return kept_rows(state, kept)

    kept_rows = transformers_engine._kept_rows
    monkeypatch.setattr(transformers_engine, "_kept_rows", counted)
    images = pictures(SIZES)
    whole = engine.caption(images, PROMPTS, KEYS)
    words = Counter(word for one in whole for word in set(one.text.split()[:6]))
    engine.end_ids = [engine.processor.tokenizer.convert_tokens_to_ids(word) for word, _ in words.most_common(2)]
    together = engine.caption(images, PROMPTS, KEYS)
    assert left, "no row left its batch"
    assert "stop" in {one.finish_reason for one in together}
    alone = [engine.caption([image], [prompt], [key])[0] for image, prompt, key in zip(images, PROMPTS, KEYS, strict=True)]
    assert_equal(together, alone)


@pytest.mark.parametrize("name", CLASSES)
def test_an_image_takes_its_tokens_and_the_text_begins_once(folders: Callable[[str], Path], name: str) -> None:
    engine = load(folders(name))
    config, tokenizer = engine.model.config, engine.processor.tokenizer
    inputs = engine._inputs(pictures([(64, 64), (32, 64)]), [PROMPTS[1], "owl"])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    image_id = getattr(config, "image_token_id", None) or config.image_token_index
    assert tuple((ids == image_id).sum(dim=1).tolist()) == IMAGE_TOKENS[name]
    padded = mask == 0
    assert padded.any(), "rows of one length show no padding"
    left = torch.cummax(mask, dim=1).values == mask  # nothing is masked after a token that is not
    assert (left.all() or name == "Florence-2") and not (ids[padded] == image_id).any()
    if tokenizer.bos_token_id is not None:
        assert ((ids == tokenizer.bos_token_id) & (mask == 1)).sum(dim=1).max() <= 1


@pytest.mark.parametrize("name", ["Qwen2.5-VL", "Qwen3-VL", "InternVL", "Idefics3", "Gemma 3", "Florence-2"])
def test_a_tokenizer_without_a_pad_token_gives_the_same_captions(tmp_path: Path, name: str) -> None:
    CLASSES[name](tmp_path)
    expected = load(tmp_path).caption(pictures(SIZES), PROMPTS, KEYS)
    change(tmp_path / "tokenizer_config.json", pad_token=None)
    engine = load(tmp_path)
    assert engine.processor.tokenizer.pad_token == engine.processor.tokenizer.eos_token
    assert_equal(engine.caption(pictures(SIZES), PROMPTS, KEYS), expected)


@pytest.mark.parametrize("name", ["Qwen2.5-VL", "InternVL", "Idefics3", "Gemma 3"])
def test_files_as_older_versions_of_transformers_wrote_them_are_read(tmp_path: Path, name: str) -> None:
    """The image processor in preprocessor_config.json, and the template in chat_template.json."""
    CLASSES[name](tmp_path)
    expected, side_px = load(tmp_path).caption(pictures(SIZES), PROMPTS, KEYS), resolve_model(str(tmp_path)).image_side_px
    file = tmp_path / "processor_config.json"
    whole = json.loads(file.read_text())
    image_processor = whole.pop("image_processor")
    whole.pop("video_processor", None)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(image_processor | {"processor_class": whole["processor_class"]})
    )
    file.write_text(json.dumps(whole))
    template = tmp_path / "chat_template.jinja"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
    template.unlink()
    assert resolve_model(str(tmp_path)).image_side_px == side_px
    assert_equal(load(tmp_path).caption(pictures(SIZES), PROMPTS, KEYS), expected)


@pytest.mark.parametrize(
    ("config", "processor", "side_px"),
    [
        ({"model_type": "qwen2_5_vl"}, {"max_pixels": 12845056}, 1024),
        ({"model_type": "qwen2_5_vl"}, {"max_pixels": 401408}, 633),
        ({"model_type": "qwen3_vl"}, {"size": {"shortest_edge": 65536, "longest_edge": 16777216}}, 1024),
        ({"model_type": "internvl", "vision_config": {"image_size": [448, 448]}}, {"max_patches": 12}, 1552),
        ({"model_type": "idefics3"}, {"size": {"longest_edge": 1456}, "max_image_size": {"longest_edge": 364}}, 1456),
        ({"model_type": "gemma3", "vision_config": {"image_size": 896}}, {"size": {"height": 896, "width": 896}}, 896),
        ({"model_type": "florence2"}, {"size": {"height": 768, "width": 768}}, 768),
        ({"model_type": "llava", "vision_config": {"image_size": 336}}, {"size": {"shortest_edge": 336}}, 336),
    ],
)
def test_images_are_decoded_to_what_the_model_can_use_of_them(
    tmp_path: Path, config: dict[str, Any], processor: dict[str, Any], side_px: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {}} | config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert resolve_model(str(tmp_path)).image_side_px == side_px
    assert resolve_model(str(tmp_path), image_side_px=500).image_side_px == 500


def test_a_model_that_cannot_be_asked_without_a_template_is_named_before_the_work(tmp_path: Path) -> None:
    (tiny_models.save_tiny_qwen3_vl(tmp_path) / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="is a qwen3_vl model without a chat template: put one that takes images into"):
        resolve_model(str(tmp_path))


def test_a_class_that_transformers_does_not_caption_with_is_named(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    tiny_models.save_tiny_qwen3_vl(tmp_path)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPConfig(text_config=small, vision_config={**small, "image_size": 32, "patch_size": 16})
    CLIPModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="clip"):
        load(tmp_path)


def test_a_package_that_a_processor_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_models.save_tiny_smolvlm(tmp_path)
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    with pytest.raises(UserError, match="needs a package: .*pip install num2words"):
        load(tmp_path)


def change(file: Path, **values: Any) -> None:
    """Changes fields of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
