"""The engine `endpoint` captions as the engine behind the server does, and names what a server that misbehaves does."""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

from captioner.engines.endpoint_engine import EndpointEngine, ServedModel, find_served_model
from captioner.engines.endpoint_settings import EndpointSettings
from captioner.engines.generation import Generation, GenerationSettings
from captioner.engines.model_source import resolve_model
from captioner.engines.server import ServerLimits, caption_server
from captioner.engines.transformers_engine import TransformersEngine
from foundry.errors import Unavailable, UserError
from tests.captioner.tiny_llava import model_without_key
from tests.chat_server import MODEL, Reply, fails, judge_server, says, text_of

SETTINGS = GenerationSettings(dtype="float32", batch_size=4, max_new_tokens=8)
PROMPTS = ["Describe this image.", "What is it?"] * 3


def pictures() -> list[np.ndarray]:
    return [np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8) for seed in range(6)]


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@contextmanager
def served(engine: TransformersEngine) -> Iterator[str]:
    app = caption_server(engine, name="tiny", limits=ServerLimits(), image_side_px=1024)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    (port,) = {socket.getsockname()[1] for one in server.servers for socket in one.sockets}
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def engine(tiny_llava: Path) -> TransformersEngine:
    return TransformersEngine(resolve_model(str(tiny_llava)), SETTINGS, keep_logprobs=True)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 2.0, "seed": 5}])
def test_captions_are_those_of_the_engine_behind_the_server(engine: TransformersEngine, sampling: dict[str, Any]) -> None:
    generation = GenerationSettings(dtype="float32", batch_size=4, max_new_tokens=8, **sampling)
    keys = [f"picture-{number}" for number in range(6)]
    engine.settings = generation
    with served(engine) as url:
        model = find_served_model("tiny", EndpointSettings(url=url, concurrency=6), generation)
        asked = EndpointEngine(model, generation).caption(pictures(), PROMPTS, keys)
        again = EndpointEngine(model, generation).caption(pictures(), PROMPTS, keys, one_by_one=True)
    assert [one.text for one in asked] == [one.text for one in again]
    if not sampling:  # a sample depends on the request's own seed, which is not the engine's
        engine.settings = generation
        expected = engine.caption(pictures(), PROMPTS, keys)
        assert [(one.text, one.finish_reason, one.num_tokens) for one in asked] == [
            (one.text, one.finish_reason, one.num_tokens) for one in expected
        ]
        for name in ("mean_logprob", "min_logprob"):
            assert [getattr(one, name) for one in asked] == pytest.approx([getattr(one, name) for one in expected], abs=1e-5)


@pytest.mark.parametrize("logprobs", [True, False])
def test_an_image_for_which_the_served_model_computes_nan_is_refused_alone(tmp_path: Path, *, logprobs: bool) -> None:
    broken = TransformersEngine(resolve_model(str(model_without_key(tmp_path))), SETTINGS, keep_logprobs=True)
    with served(broken) as url:
        settings = EndpointSettings(url=url, tries=1, body={} if logprobs else {"logprobs": None})
        asking = EndpointEngine(find_served_model("tiny", settings, SETTINGS), SETTINGS)
        (refused,) = asking.caption(pictures()[:1], ["a key"], ["a"])
        assert "HTTP 422" in refused.failure and "NaN or infinity for this image" in refused.failure
        assert len(asking.caption(pictures()[:2], ["an owl", "an apple"], ["a", "b"])) == 2


def test_the_transformers_engine_behind_a_server_says_that_it_takes_no_schema(engine: TransformersEngine) -> None:
    schema = '{"type": "object"}'
    with served(engine) as url:
        settings = EndpointSettings(url=url, tries=1)
        model = find_served_model("tiny", settings, SETTINGS)
        with pytest.raises(UserError, match="response_format.* is not supported here.*add response_format: null"):
            EndpointEngine(model, SETTINGS).check(pictures()[0], "a key", schema=schema)
        unconstrained = replace(model, settings=replace(settings, body={"response_format": None}))
        EndpointEngine(unconstrained, SETTINGS).check(pictures()[0], "a key", schema=schema)


def test_a_logprob_that_json_cannot_hold_is_not_finite() -> None:
    content = [{"token": "", "logprob": None}]
    choice = {"message": {"content": "x"}, "finish_reason": "stop", "logprobs": {"content": content}}
    reply = Reply(body=json.dumps({"model": "gpt-4o-2024-05-13", "choices": [choice]}))
    with judge_server(lambda body: reply) as server:
        assert [one.is_finite for one in ask(server.url)] == [False, False]


def model_at(url: str, **settings: Any) -> ServedModel:
    return ServedModel(
        name="m", settings=EndpointSettings(url=url, tries=1, **settings), answered_by="gpt-4o-2024-05-13", listed={"id": "m"}
    )


def ask(url: str, *, generation: GenerationSettings = SETTINGS, **settings: Any) -> list[Generation]:
    return EndpointEngine(model_at(url, **settings), generation).caption(pictures()[:2], PROMPTS[:2], ["a", "b"])


def test_requests_carry_image_prompt_and_decoding() -> None:
    with judge_server(lambda body: says("An owl. ", finish_reason="length")) as server:
        sampled = GenerationSettings(temperature=0.5, top_p=0.9, max_new_tokens=40)
        found = ask(server.url, generation=sampled, body={"top_k": 20, "top_p": None}, concurrency=1)
    assert [one.text for one in found] == ["An owl."] * 2
    assert {(one.finish_reason, one.num_tokens, one.num_input_tokens, one.mean_logprob) for one in found} == {
        ("length", 15, 900, None)
    }
    first, second = server.bodies
    assert text_of(first) == "Describe this image."
    assert first["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    fields = {name: value for name, value in first.items() if name not in ("messages", "seed")}
    assert fields == {"model": "m", "max_tokens": 40, "temperature": 0.5, "logprobs": True, "top_k": 20}
    assert 0 <= first["seed"] < 1 << 31
    assert first["seed"] != second["seed"]


def test_a_server_may_want_another_name_for_the_limit_of_tokens() -> None:
    with judge_server(lambda body: says("An owl.")) as server:
        ask(server.url, body={"max_tokens": None, "max_completion_tokens": 1})
    assert all("max_tokens" not in body and body["max_completion_tokens"] == SETTINGS.max_new_tokens for body in server.bodies)


def test_jpegs_are_smaller() -> None:
    with judge_server(lambda body: says("An owl.")) as server:
        ask(server.url, image_format="jpeg")
    assert all("data:image/jpeg;base64,/9j/" in json.dumps(body) for body in server.bodies)


def test_an_image_may_be_sent_by_its_address() -> None:
    with judge_server(lambda body: says("An owl.")) as server:
        model = model_at(server.url, image_urls=True, concurrency=1)
        EndpointEngine(model, SETTINGS).caption(["https://photos/a.jpg", pictures()[0]], PROMPTS[:2], ["a", "b"])
    sent = [body["messages"][0]["content"][0]["image_url"]["url"] for body in server.bodies]
    assert sent[0] == "https://photos/a.jpg" and sent[1].startswith("data:image/png;base64,")
    assert model.describe() == model_at(server.url).describe() | {"image_urls": True}, "it is another run"


def test_a_refused_image_costs_nothing_more() -> None:
    """Moderation that refuses now and then: each request is made once, and what is answered stays."""
    with judge_server(lambda body: fails(400, "no") if text_of(body) == "What is it?" else says("An owl.")) as server:
        engine = EndpointEngine(model_at(server.url), SETTINGS)
        found = engine.caption(pictures(), PROMPTS, list("abcdef"))
    assert [one.text for one in found] == ["An owl.", ""] * 3
    assert ["HTTP 400" in one.failure for one in found] == [False, True] * 3
    assert len(server.bodies) == 6


def test_where_all_images_are_refused_a_grey_one_decides_who_is_to_blame() -> None:
    def grey_alone(body: dict[str, Any]) -> Reply:
        return says("Grey.") if body["max_tokens"] == 1 else fails(400, "no")

    with judge_server(grey_alone) as server:
        assert all(one.failure for one in ask(server.url))
    with judge_server(lambda body: fails(400, "no model of images any more")) as server:
        with pytest.raises(Unavailable, match="HTTP 400 .*no model of images any more"):
            ask(server.url)
        assert len(server.bodies) == 3


def test_what_is_not_an_image_s_fault_ends_all_requests() -> None:
    with judge_server(lambda body: fails(403)) as server:
        engine = EndpointEngine(model_at(server.url, concurrency=1), SETTINGS)
        with pytest.raises(Unavailable, match="HTTP 403"):
            engine.caption(pictures(), PROMPTS, list("abcdef"))
        with pytest.raises(Unavailable, match="were stopped"):
            engine.caption(pictures(), PROMPTS, list("abcdef"))
    assert len(server.bodies) < 6


class Bucket:
    """A server that answers `rate` requests a second, and says to the others when to come again."""

    def __init__(self, *, rate: float) -> None:
        self.rate = rate
        self.answered = self.refused = 0
        self._tokens, self._filled_at, self._lock = 1.0, time.monotonic(), threading.Lock()

    def __call__(self, body: dict[str, Any]) -> Reply:
        with self._lock:
            now = time.monotonic()
            self._tokens = min(2.0, self._tokens + (now - self._filled_at) * self.rate)
            self._filled_at = now
            if self._tokens < 1:
                self.refused += 1
                return fails(429, Retry_After=f"{1 / self.rate}")
            self._tokens -= 1
            self.answered += 1
            return says("An owl.")


def test_a_rate_limit_is_waited_for_and_nothing_is_paid_twice() -> None:
    bucket = Bucket(rate=20)
    with judge_server(bucket) as server:
        engine = EndpointEngine(model_at(server.url, concurrency=16), SETTINGS)
        assert [one.text for one in engine.caption(pictures() * 5, PROMPTS * 5, ["a"] * 30)] == ["An owl."] * 30
    assert bucket.answered == 30
    assert 0 < bucket.refused < 90, "fewer ask at one time"
    assert server.most_at_once <= 16


@pytest.mark.parametrize("reply", [says("A wom", finish_reason="content_filter"), fails(400, "content_filter")])
def test_an_image_that_a_content_filter_refuses_keeps_its_code(reply: Reply) -> None:
    with judge_server(lambda body: reply) as server:
        assert {(one.finish_reason, one.is_refusal, one.failure) for one in ask(server.url)} == {("content_filter", True, "")}


def test_prices_and_limits_of_a_server_s_list_are_no_part_of_a_model() -> None:
    listed = {"id": "m", "root": "Qwen/Qwen3-VL-8B-Instruct", "max_model_len": 512, "pricing": {"prompt": "0.1"}}
    model = replace(model_at("http://there/v1"), listed=listed)
    later = replace(model, listed={**listed, "max_model_len": 8192, "pricing": {"prompt": "0.2"}})
    assert model.describe() == later.describe()
    assert model.describe() != replace(model, listed={**listed, "root": "another"}).describe()


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (fails(500), "does not answer"),
        (fails(429, Retry_After="3600"), "asks to wait 3600 s"),
        (Reply(body="<html>"), "no chat completion"),
        (Reply(body='{"choices": []}'), "no chat completion"),
        (says("An owl.", model="another"), "now answers as another"),
    ],
)
def test_a_server_that_misbehaves_ends_in_one_line(reply: Reply, complaint: str) -> None:
    with judge_server(lambda body: reply) as server, pytest.raises(UserError, match=complaint) as raised:
        ask(server.url)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (fails(401), r"refuses \(HTTP 401 .*, and no key was sent: name the environment variable"),
        (fails(404), r"refuses \(HTTP 404 .*: check the address, the model's name and the fields of the request"),
        (fails(400, "this model takes no images"), r"refuses \(HTTP 400 .*this model takes no images"),
        (fails(500), "does not answer"),
    ],
)
def test_a_server_that_cannot_caption_is_named_before_the_work(reply: Reply, complaint: str) -> None:
    settings = EndpointSettings(tries=1)
    with judge_server(lambda body: reply) as server, pytest.raises(UserError, match=complaint) as raised:
        find_served_model(MODEL, replace(settings, url=server.url), SETTINGS)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="does not answer .*ConnectError"):
        find_served_model(MODEL, replace(settings, url="http://127.0.0.1:9/v1"), SETTINGS)


def test_the_first_question_is_asked_as_all_others_will_be() -> None:
    """So that a server whose context is too short for an image and its caption refuses it."""
    with judge_server(lambda body: says("Grey.")) as server:
        find_served_model(MODEL, EndpointSettings(url=server.url, image_side_px=96, body={"top_k": 3}), SETTINGS)
    (body,) = server.bodies
    assert (body["max_tokens"], body["top_k"]) == (SETTINGS.max_new_tokens, 3)
    data = base64.b64decode(body["messages"][0]["content"][0]["image_url"]["url"].partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (96, 96)


def test_a_key_that_is_not_set_is_named() -> None:
    settings = EndpointSettings(url="http://127.0.0.1:9/v1", key_variable="NO_SUCH_KEY")
    with pytest.raises(UserError, match="environment variable NO_SUCH_KEY is not set: export it"):
        find_served_model("m", settings, SETTINGS)


def test_an_empty_answer_is_an_empty_caption() -> None:
    with judge_server(lambda body: says(None)) as server:
        assert [one.text for one in ask(server.url)] == ["", ""]


def test_a_model_that_is_not_served_is_named(engine: TransformersEngine) -> None:
    with served(engine) as url, pytest.raises(UserError, match="serves tiny, not large"):
        find_served_model("large", EndpointSettings(url=url), SETTINGS)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"url": "ftp://there"}, "endpoint.url must be http"),
        ({"url": "https://me:secret@there/v1"}, "endpoint.key_variable"),
        ({"concurrency": 0}, "endpoint.concurrency must be 1 or more"),
        ({"body": {"model": "x"}}, "endpoint.body must be without model"),
        ({"max_cost": 5.0}, "needs endpoint.input_price"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        EndpointSettings(**settings)


def test_cost_is_that_of_a_million_tokens() -> None:
    settings = EndpointSettings(input_price=2.5, output_price=10, max_cost=1)
    assert settings.cost(input_tokens=200_000, output_tokens=50_000) == pytest.approx(0.5 + 0.5)


def test_without_an_address_there_is_nothing_to_ask() -> None:
    with pytest.raises(UserError, match="needs the address of an OpenAI-compatible server"):
        find_served_model("m", EndpointSettings(), SETTINGS)
