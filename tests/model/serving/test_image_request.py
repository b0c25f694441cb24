"""Every field is read as it is meant, and what is wrong is told by its name."""

import json
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from foundry.http.server import BadRequest
from model.dit_config import FewSteps
from model.lora.settings import LoraChoice
from model.sampling import SamplingConfig
from model.serving.forms import read_form
from model.serving.image_request import RequestReader
from model.serving.settings import ServerLimits, parse_named

READER = RequestReader(
    name="tiny",
    adapters={"owl": 0.8, "ink-2": 1.0},
    sampling=SamplingConfig(num_inference_steps=12, guidance_scale=3.0),
    limits=ServerLimits(max_steps=50, max_prompt_chars=100),
    resolution=32,
)


def test_every_field_reaches_the_request() -> None:
    body = {
        "model": "tiny",
        "prompt": "an owl",
        "n": 3,
        "size": "40x24",
        "seed": 7,
        "steps": 9,
        "guidance": 2,
        "negative_prompt": "a key",
        "sampler": "ddim",
        "eta": 0.5,
        "lora": ["owl", "ink-2:-0.5"],
        "rewrite": False,
        "response_format": "b64_json",
        "user": "someone",
        "quality": "standard",
        "shift": None,
    }
    order = READER.read(body)
    request = order.request
    assert (request.prompts, request.negative_prompt, request.num_images) == (("an owl",), "a key", 3)
    assert (request.height, request.width, request.seed) == (24, 40, 7)
    assert request.sampling == SamplingConfig(num_inference_steps=9, guidance_scale=2, sampler="ddim", eta=0.5)
    assert order.adapters == (("owl", 0.8), ("ink-2", -0.5)) and order.rewrite is False


def test_what_is_left_out_is_the_servers() -> None:
    order = READER.read({"prompt": "an owl", "size": "auto"})
    assert order.request.sampling == READER.sampling.resolved() and order.request.num_images == 1
    assert (order.request.height, order.request.width, order.adapters, order.rewrite) == (None, None, (), None)
    seeds = {READER.read({"prompt": "an owl"}).request.seed for _ in range(5)}
    assert len(seeds) == 5  # one that nobody gave is drawn


def test_adapters_of_few_steps_change_what_is_left_open_as_the_command_does() -> None:
    four, two = (FewSteps(method="consistency", num_inference_steps=steps, guidance_scale=4.5) for steps in (4, 2))
    reader = replace(READER, sampling=SamplingConfig(), few_steps={"owl": four})
    plain = reader.read({"prompt": "an owl"}).request.sampling
    assert plain == SamplingConfig().resolved()
    for body in ({"lora": ["owl:0.5"]}, {"model": "owl"}, {"lora": ["ink-2", "owl"]}):
        assert reader.read({"prompt": "an owl", **body}).request.sampling == SamplingConfig().resolved(four)
    given = reader.read({"prompt": "an owl", "lora": ["owl"], "steps": 7, "guidance": 3}).request.sampling
    assert (given.sampler, given.num_inference_steps, given.guidance_scale) == ("lcm", 7, 3)
    own = replace(reader, own_few_steps=two)
    assert own.read({"prompt": "an owl"}).request.sampling == SamplingConfig().resolved(two)
    assert own.read({"prompt": "an owl", "lora": ["owl"]}).request.sampling == SamplingConfig().resolved(four)
    by_server = replace(reader, sampling=SamplingConfig(num_inference_steps=9))  # what the server was started with stays
    assert by_server.read({"prompt": "an owl", "lora": ["owl"]}).request.sampling.num_inference_steps == 9
    both = replace(reader, few_steps={"owl": four, "ink-2": two})
    with pytest.raises(BadRequest, match="lora: owl and ink-2 are distilled to few steps differently: give one of them"):
        both.read({"prompt": "an owl", "lora": ["owl", "ink-2"]})


def test_an_adapter_is_a_model_too() -> None:
    assert READER.read({"prompt": "an owl", "model": "owl"}).adapters == (("owl", 0.8),)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": None}, "prompt", "expected a description"),
        ({"prompt": " "}, "prompt", "expected a description"),
        ({"prompt": 3}, "prompt", "expected a string, found 3"),
        ({"prompt": "o" * 101}, "prompt", "at most 100 characters, found 101"),
        ({"negative_prompt": "o" * 101}, "negative_prompt", "at most 100 characters"),
        ({"n": 0}, "n", "expected 1 to 10, found 0"),
        ({"n": 11}, "n", "expected 1 to 10, found 11"),
        ({"n": True}, "n", "expected an integer, found True"),
        ({"n": 1.5}, "n", "expected an integer, found 1.5"),
        ({"size": "large"}, "size", "expected WIDTHxHEIGHT in pixels, as 512x768, found 'large'"),
        ({"size": "64x64"}, "size", "at most 2048 pixels, found 64 x 64 = 4096"),
        ({"size": "0x32"}, "size", "at most 2048 pixels"),
        ({"steps": 51}, "steps", "expected 1 to 50, found 51"),
        ({"steps": 0}, "steps", "expected 1 to 50"),
        ({"guidance": -1}, "guidance", "guidance must be 0 or more"),
        ({"guidance": float("inf")}, "guidance", "expected a finite number"),
        ({"guidance": "4"}, "guidance", "expected a number, found '4'"),
        ({"sampler": "magic"}, "sampler", "sampler must be one of"),
        ({"seed": -1}, None, "seeds: expected 0"),
        ({"response_format": "url"}, "response_format", "'url' is not supported, since this server keeps no images"),
        ({"quality": "hd"}, "quality", "'hd' is not supported by this server"),
        ({"stream": True}, "stream", "True is not supported"),
        ({"step": 3}, "step", "step is no known field: did you mean steps?"),
        ({"zzz": 3}, "zzz", "zzz is no known field: this server knows prompt, model"),
        ({"strength": 0.5}, "strength", "strength is no known field"),
        ({"lora": ["cat"]}, "lora", "of owl, ink-2, found 'cat'"),
        ({"lora": ["owl:much"]}, "lora", "found 'owl:much'"),
        ({"lora": ["owl", "owl:2"]}, "lora", "owl is given twice"),
        ({"lora": [3]}, "lora", "found 3"),
        ({"lora": "owl"}, "lora", "expected a list, found 'owl'"),
    ],
)
def test_what_is_wrong_is_told_by_its_name(fields: dict[str, Any], param: str | None, message: str) -> None:
    with pytest.raises(BadRequest) as error:
        READER.read({"prompt": "an owl"} | fields)
    assert message in str(error.value) and error.value.param == param and error.value.status == 400


def test_another_model_is_not_found() -> None:
    with pytest.raises(BadRequest, match="there is no model 'dall-e-3': this server has tiny, owl, ink-2") as error:
        READER.read({"prompt": "an owl", "model": "dall-e-3"})
    assert error.value.status == 404


def test_an_edit_has_fields_of_its_own() -> None:
    image, mask = Image.new("RGB", (40, 24)), Image.new("L", (40, 24))
    order = READER.read({"prompt": "an owl", "strength": 0.5, "paste_kept": True}, image=image, mask=mask)
    assert order.request.image is image and order.request.mask_image is mask
    assert order.request.strength == 0.5 and order.request.paste_kept
    with pytest.raises(BadRequest, match="mask_image: expected the image's size, 24 x 40 px"):
        READER.read({"prompt": "an owl"}, image=image, mask=Image.new("L", (24, 40)))
    with pytest.raises(BadRequest, match="strength: expected 0 to 1"):
        READER.read({"prompt": "an owl", "strength": 1.5}, image=image)


def form(*parts: tuple[str, str, bytes], boundary: str = "xYzZY") -> tuple[str, bytes]:
    """Content type and body of a form of (name, file name or "", content)."""
    body = b""
    for name, file, content in parts:
        named = f'; filename="{file}"' if file else ""
        kind = "\r\nContent-Type: image/png" if file else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{named}{kind}\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return f"multipart/form-data; boundary={boundary}", body + f"--{boundary}--\r\n".encode()


def test_a_form_is_read_byte_for_byte() -> None:
    image = bytes(range(256)) * 3 + b"\r\n\r\n--xYzZ\r\r\n\n\r"
    texts = {"prompt": b"7", "n": b"2", "lora[]": b"owl", "strength": b"0.5", "paste_kept": b"true"}
    texts["negative_prompt"] = "grün".encode()
    found = read_form(*form(("image", "a.png", image), *((name, "", text) for name, text in texts.items())))
    assert found.files == {"image": image}
    assert found.fields == {
        "prompt": "7",
        "n": 2,
        "lora": ["owl"],
        "strength": 0.5,
        "paste_kept": True,
        "negative_prompt": "grün",
    }


@pytest.mark.parametrize(
    ("content_type", "data", "message"),
    [
        ("application/json", json.dumps({}).encode(), "expected multipart/form-data with a file `image`"),
        ("multipart/form-data", b"nothing", "its parts are not found"),
        ("multipart/form-data; boundary=x", b"nothing", "expected the file of an image|its parts are not found"),
        (*form(("prompt", "", b"an owl")), "expected the file of an image to edit, found none"),
        (*form(("image", "a", b"1"), ("image[]", "b", b"2")), "image is given twice"),
        (*form(("image", "a", b"1"), ("prompt", "", b"\xff")), "prompt: expected text"),
    ],
)
def test_what_is_no_form_is_refused(content_type: str, data: bytes, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        read_form(content_type, data)


def test_adapters_have_names() -> None:
    assert parse_named(["owl=a/b.safetensors", "ink=c:0.5"]) == {
        "owl": LoraChoice("a/b.safetensors"),
        "ink": LoraChoice("c", 0.5),
    }
    for wrong, message in [
        (["a/b"], "expected NAME=PATH"),
        (["a b=c"], "expected NAME=PATH"),
        (["a=b", "a=c"], "a is given twice"),
        (["a=b:c"], "is not a number"),
    ]:
        with pytest.raises(ValueError, match=message):
            parse_named(wrong)


def test_limits_make_sense() -> None:
    with pytest.raises(ValueError, match="max_steps must be 1 or more, found 0; max_waiting must be max_images or more"):
        ServerLimits(max_steps=0, max_waiting=3)
