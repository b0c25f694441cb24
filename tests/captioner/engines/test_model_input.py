"""What checkpoints of others lack is named, or made up for where nothing depends on it; wide images are seen whole."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaImageProcessor

from captioner.engines.generation import GenerationSettings
from captioner.engines.model_input import padded
from captioner.engines.model_source import LLAVA_PROMPT, MINI, resolve_model
from captioner.engines.transformers_engine import TransformersEngine
from foundry.errors import UserError
from tests.captioner.tiny_llava import PATCH_PX, SIDE_PX, TEMPLATE, save_tiny_llava, save_tiny_next, save_tiny_onevision

TEXT_ALONE = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}"
BLIND = "{% for message in messages %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}"


def engine(folder: Path, **settings: Any) -> TransformersEngine:
    return TransformersEngine(
        resolve_model(str(folder)), GenerationSettings(**{"dtype": "float32", "max_new_tokens": 6, **settings})
    )


def change(file: Path, **values: Any) -> None:
    """Changes fields of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def change_weights(folder: Path, *, without: str = "", nan_in: str = "", row: int = 0) -> None:
    """Leaves out the tensors with this in their name, or makes a row of one NaN."""
    weights = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    if nan_in:
        weights[nan_in][row] = torch.nan
    kept = {name: tensor for name, tensor in weights.items() if not (without and without in name)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def scene(left: int, right: int) -> npt.NDArray[np.uint8]:
    """Twice as wide as it is high, with an object of such a brightness at either side; the middle square is empty."""
    pixels = np.full((40, 80, 3), 100, np.uint8)
    pixels[10:30, 2:16], pixels[10:30, 64:78] = left, right
    return pixels


@pytest.mark.parametrize("save", [save_tiny_llava, save_tiny_next, save_tiny_onevision])
def test_a_checkpoint_that_lacks_tensors_is_refused_by_their_names(tmp_path: Path, save: Any) -> None:
    save(tmp_path)
    change_weights(tmp_path, without="multi_modal_projector")
    with pytest.raises(
        UserError, match=r"as a vision-language model: its weights lack .*multi_modal_projector.linear_1.bias, "
    ):
        engine(tmp_path)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            "model.fp16.safetensors",
            r"as a variant \(model.fp16.safetensors\): fetch the full weights, model.safetensors, or rename",
        ),
        ("pytorch_model.bin", "as pytorch_model.bin, and only safetensors are read: .*transformers' format, such as llava-hf/"),
    ],
)
def test_weights_that_are_not_read_are_named_with_what_to_do(tmp_path: Path, file: str, message: str) -> None:
    weights = save_tiny_llava(tmp_path) / "model.safetensors"
    expected = resolve_model(str(tmp_path)).num_parameters
    copied = tmp_path / file
    copied.write_bytes(weights.read_bytes())
    assert resolve_model(str(tmp_path)).num_parameters == expected > 0
    weights.unlink()
    with pytest.raises(UserError, match=message):
        engine(tmp_path)


def test_tied_weights_are_stored_once_and_not_missing(tmp_path: Path) -> None:
    save_tiny_llava(tmp_path)
    change(tmp_path / "config.json", tie_word_embeddings=True)
    change_weights(tmp_path, without="lm_head")
    model = engine(tmp_path).model
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_what_is_not_finite_is_no_caption(tmp_path: Path) -> None:
    tokenizer = engine(save_tiny_llava(tmp_path)).processor.tokenizer
    (embeddings,) = (name for name in load_file(tmp_path / "model.safetensors") if name.endswith("embed_tokens.weight"))
    change_weights(tmp_path, nan_in=embeddings, row=tokenizer.convert_tokens_to_ids("key"))
    for settings in ({}, {"temperature": 1.0, "top_p": 0.5}):
        model = engine(tmp_path, **settings)
        said = model.caption([scene(0, 0)] * 3, ["an owl", "a key", "an apple"], ["a", "b", "c"])
        assert [one.is_finite for one in said] == [True, False, True], "its neighbours in the batch are not touched"
    model.check(scene(0, 0), "an owl")
    with pytest.raises(UserError, match="computes NaN or infinity in float32: give the number format"):
        model.check(scene(0, 0), "a key")


def test_a_chat_template_of_the_tokenizer_alone_is_used(tmp_path: Path) -> None:
    ours = TEMPLATE.replace("USER:", "the")
    (save_tiny_llava(tmp_path) / "chat_template.jinja").unlink()
    assert resolve_model(str(tmp_path)).prompt_format == LLAVA_PROMPT
    assert engine(tmp_path)._format("an owl") == "USER: <image>\nan owl ASSISTANT:"
    for template in (ours, [{"name": "tools", "template": "x"}, {"name": "default", "template": ours}]):
        change(tmp_path / "tokenizer_config.json", chat_template=template)
        assert resolve_model(str(tmp_path)).prompt_format == "chat_template of tokenizer_config.json"
        assert engine(tmp_path)._format("an owl") == "the <image>\nan owl ASSISTANT:"
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    assert engine(tmp_path)._format("an owl") == "USER: <image>\nan owl ASSISTANT:", "the processor's own comes first"
    assert resolve_model(str(tmp_path)).prompt_format == resolve_model("mini").prompt_format == ""


@pytest.mark.parametrize("template", [TEXT_ALONE, BLIND, "{{ messages[0]['content'] }}", "{{ raise_exception('no images') }}"])
def test_a_chat_template_for_text_alone_is_named(tmp_path: Path, template: str) -> None:
    (save_tiny_llava(tmp_path) / "chat_template.jinja").unlink()
    change(tmp_path / "tokenizer_config.json", chat_template=template)
    with pytest.raises(
        UserError, match=r"\(tokenizer_config.json\) only takes text .*chat_template.jinja in the model's folder"
    ):
        engine(tmp_path)


def test_a_tokenizer_without_a_pad_token_pads_with_what_is_masked(tmp_path: Path) -> None:
    whole, without = save_tiny_llava(tmp_path / "whole"), save_tiny_llava(tmp_path / "without")
    change(without / "tokenizer_config.json", pad_token=None)
    prompts, keys = ["an owl", "the large owl at left of a small key"], ["a", "b"]
    model = engine(without)
    assert model.processor.tokenizer.pad_token == "</s>"
    assert model.caption([scene(0, 9)] * 2, prompts, keys) == engine(whole).caption([scene(0, 9)] * 2, prompts, keys)


def test_a_processor_that_does_not_know_its_patches_says_what_to_write(tmp_path: Path) -> None:
    file = save_tiny_llava(tmp_path) / "processor_config.json"
    change(file, patch_size=None, vision_feature_select_strategy=None, num_additional_image_tokens=None)
    with pytest.raises(UserError, match=r"processor_config.json of .* lacks patch_size and vision_feature") as raised:
        engine(tmp_path)
    told = str(raised.value).partition("write ")[2].partition(" into that file")[0]
    change(file, **json.loads("{" + told + "}"))
    assert json.loads(file.read_text())["patch_size"] == PATCH_PX
    engine(tmp_path).check(scene(0, 0), "an owl")


def test_a_folder_without_a_processor_is_named(tmp_path: Path) -> None:
    (save_tiny_llava(tmp_path) / "processor_config.json").unlink()
    with pytest.raises(UserError, match=r"the processor of .* cannot be loaded|not a processor of images and text"):
        engine(tmp_path)


def test_both_sides_of_a_wide_scene_are_seen_by_a_model_that_was_trained_with_padding(tiny_llava: Path) -> None:
    scenes = [scene(0, 0), scene(255, 0), scene(0, 255)]
    prompts, keys = ["an owl"] * 3, ["a", "b", "c"]
    cropped = engine(tiny_llava, image_fit="processor")._inputs(scenes, prompts)["pixel_values"]
    assert torch.equal(cropped[0], cropped[1]) and torch.equal(cropped[0], cropped[2]), "the crop has neither object"
    seen = engine(tiny_llava)._inputs(scenes, prompts)["pixel_values"]
    half = SIDE_PX // 2
    assert not torch.equal(seen[0, :, :, :half], seen[1, :, :, :half]) and torch.equal(seen[0, :, :, -4:], seen[1, :, :, -4:])
    assert not torch.equal(seen[0, :, :, half:], seen[2, :, :, half:]) and torch.equal(seen[0, :, :, :4], seen[2, :, :, :4])
    said = engine(tiny_llava, max_new_tokens=12).caption(scenes, prompts, keys)
    assert len({one.mean_logprob for one in said}) == 3


def test_padding_is_that_of_the_library_and_leaves_squares_alone(tiny_llava: Path) -> None:
    model = engine(tiny_llava)
    reference = LlavaImageProcessor(
        do_pad=True, size={"shortest_edge": SIDE_PX}, crop_size={"height": SIDE_PX, "width": SIDE_PX}
    )
    rng = np.random.default_rng(0)
    for height, width in [(40, 55), (61, 40), (33, 64), (32, 33)]:
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        expected = reference(images=[pixels], return_tensors="pt")["pixel_values"]
        assert torch.equal(model._inputs([pixels], ["an owl"])["pixel_values"], expected), (height, width)
    square = rng.integers(0, 255, (50, 50, 3), dtype=np.uint8)
    plain = engine(tiny_llava, image_fit="processor")._inputs([square], ["an owl"])["pixel_values"]
    assert torch.equal(model._inputs([square], ["an owl"])["pixel_values"], plain)


def test_padding_of_a_strip_takes_little_memory() -> None:
    strip = padded(np.zeros((4000, 1, 3), np.uint8), side_px=336, colour=(9, 9, 9))
    assert strip.shape == (672, 672, 3) and strip[0, 0].tolist() == [9, 9, 9] and (strip == 0).any()


def test_only_models_that_were_trained_with_padding_and_would_be_cropped_are_padded(tmp_path: Path) -> None:
    assert resolve_model(str(save_tiny_llava(tmp_path / "llava"))).image_fit("auto") == "pad"
    assert resolve_model(str(tmp_path / "llava")).image_fit("processor") == "processor"
    assert resolve_model(str(save_tiny_next(tmp_path / "next"))).image_fit("auto") == "processor"
    assert resolve_model(str(save_tiny_onevision(tmp_path / "onevision"))).image_fit("auto") == "processor"
    assert resolve_model(str(MINI)).image_fit("auto") == "processor", "it was trained on squares, and crops nothing"
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text(json.dumps({"model_type": "llava", "vision_config": {"image_size": 336}}))
    assert resolve_model(str(old)).image_fit("auto") == "pad"
    (old / "preprocessor_config.json").write_text('{"do_center_crop": false}')
    assert resolve_model(str(old)).image_fit("auto") == "processor"
