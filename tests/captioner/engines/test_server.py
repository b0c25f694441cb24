"""The server answers as the engine would, in batches, and refuses what it cannot answer in a line of JSON."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient

from captioner.engines.generation import Generation, GenerationSettings
from captioner.engines.model_source import resolve_model
from captioner.engines.server import Batcher, Question, ServerLimits, _completion, caption_server, serve
from captioner.engines.transformers_engine import TransformersEngine
from foundry.chat_endpoint import image_message, image_url
from foundry.http.server import BadRequest
from tests.captioner.tiny_llava import save_tiny_llava

SETTINGS = GenerationSettings(dtype="float32", batch_size=4, max_new_tokens=8)
LIMITS = ServerLimits(max_request_bytes=200_000, max_new_tokens=16)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)


def request(seed: int = 0, prompt: str = "Describe this image.", **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [image_message(prompt, [image_url(picture(seed))])], **fields}


@pytest.fixture(scope="module")
def engine(tiny_llava: Path) -> TransformersEngine:
    return TransformersEngine(resolve_model(str(tiny_llava)), SETTINGS, keep_logprobs=True)


@pytest.fixture
def client(engine: TransformersEngine) -> Iterator[TestClient]:
    engine.settings = SETTINGS
    with TestClient(
        caption_server(engine, name="tiny", limits=LIMITS, image_side_px=56), base_url="http://localhost"
    ) as client:
        yield client


def test_answers_are_those_of_the_engine(client: TestClient, engine: TransformersEngine) -> None:
    (expected,) = engine.caption([picture(3)], ["Describe this image."], [""])
    answer = client.post("/v1/chat/completions", json=request(3, logprobs=True)).json()
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text}
    assert choice["finish_reason"] == expected.finish_reason
    assert [one["logprob"] for one in choice["logprobs"]["content"]] == pytest.approx(expected.logprobs)
    assert answer["usage"]["completion_tokens"] == expected.num_tokens == len(expected.logprobs)
    assert answer["usage"]["prompt_tokens"] == expected.num_input_tokens > 9  # those of the image among them
    assert client.post("/v1/chat/completions", json=request(3)).json()["choices"][0]["logprobs"] is None


def test_a_question_that_exceeds_the_context_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/chat/completions", json=request(prompt="owl " * 2048))
    assert answer.status_code == 422
    assert "and a caption up to 8 more; the context has 2048" in answer.json()["error"]["message"]


def test_a_request_sets_its_own_decoding(client: TestClient) -> None:
    answer = client.post("/v1/chat/completions", json=request(max_tokens=2)).json()
    assert answer["usage"]["completion_tokens"] == 2
    assert answer["choices"][0]["finish_reason"] == "length"
    said = [
        client.post("/v1/chat/completions", json=request(temperature=3.0, seed=seed)).json()["choices"][0]["message"]["content"]
        for seed in (1, 1, 2)
    ]
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "another"}, 404, "there is no model 'another'"),
        (request(n=2), 400, "n=2 is not supported"),
        (request(stream=True), 400, "stream=True is not supported"),
        (request(max_tokens=17), 400, "at most 16"),
        (request(max_tokens="many"), 400, "must be numbers"),
        (request(temperature=-1), 400, "temperature must be 0 or more"),
        (request(prompt="a <image> more"), 400, "<image> is not allowed"),
        (request() | {"messages": None}, 400, "malformed"),
        (request() | {"messages": [{"role": "system", "content": "be brief"}]}, 400, "the role system"),
        (request() | {"messages": [{"role": "user", "content": "no image"}]}, 400, "found 0 images"),
        (request() | {"messages": [image_message("two", [image_url(picture(1))] * 2)]}, 400, "found 2 images"),
        (request() | {"messages": [image_message("one", ["http://127.0.0.1:1/a.png"])]}, 400, "fetches nothing"),
        (request() | {"messages": [image_message("one", ["file:///etc/passwd"])]}, 400, "fetches nothing"),
        (request() | {"messages": [image_message("one", ["data:image/png;base64,AAAA"])]}, 422, "cannot be read"),
        (request() | {"messages": [image_message("long" * 100_000, [image_url(picture(1))])]}, 413, "exceeds 200000 bytes"),
    ],
)
def test_what_cannot_be_answered_is_refused(client: TestClient, body: dict[str, Any], status: int, message: str) -> None:
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff"])
def test_what_is_not_a_json_object_is_refused(client: TestClient, data: bytes) -> None:
    assert client.post("/v1/chat/completions", content=data).status_code == 400


def test_a_key_is_asked_for_but_for_health(engine: TransformersEngine) -> None:
    with TestClient(
        caption_server(engine, name="tiny", limits=LIMITS, image_side_px=56, key="sk-7"), base_url="http://localhost"
    ) as client:
        assert client.get("/v1/models").status_code == 401
        assert client.get("/v1/models", headers={"Authorization": "Bearer sk-8"}).status_code == 401
        assert client.get("/v1/models", headers={"Authorization": "Bearer sk-7"}).json()["data"][0]["id"] == "tiny"
        assert client.get("/health").json() == {"status": "ok"}


class _SlowEngine:
    """Notes its batches, waits to be let go, and fails on the prompt `bad`."""

    def __init__(self) -> None:
        self.batch_size = 3
        self.settings = SETTINGS
        self.batches: list[list[str]] = []
        self.started, self.go = threading.Event(), threading.Event()
        self.works = True

    def caption(self, images: list[np.ndarray], prompts: list[str], keys: list[str]) -> list[Generation]:
        self.batches.append(prompts)
        self.started.set()
        assert self.go.wait(30)
        if "bad" in prompts:
            raise RuntimeError("too\nhard")
        return [Generation(text=one, finish_reason="stop", num_tokens=1, mean_logprob=0, min_logprob=0) for one in prompts]

    def check(self, image: np.ndarray, prompt: str) -> None:
        if not self.works:
            raise RuntimeError("device lost")


@pytest.mark.parametrize(("works", "status"), [(True, 422), (False, 500)])
def test_an_image_that_the_model_fails_on_is_told_from_a_model_that_is_lost(*, works: bool, status: int) -> None:
    engine = _SlowEngine()
    engine.works = works
    engine.go.set()
    app = caption_server(engine, name="tiny", limits=LIMITS, image_side_px=56)  # type: ignore[arg-type]
    with TestClient(app, base_url="http://localhost") as client:
        answer = client.post("/v1/chat/completions", json=request(prompt="bad"))
        assert client.post("/v1/chat/completions", json=request(prompt="good")).status_code == 200
    assert answer.status_code == status
    assert "RuntimeError: too" in answer.json()["error"]["message"]


@pytest.mark.parametrize("with_logprobs", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_what_is_not_finite_is_no_answer(*, value: float, with_logprobs: bool) -> None:
    generation = Generation("", "stop", 1, mean_logprob=value, min_logprob=value, logprobs=(value,))
    with pytest.raises(BadRequest, match="NaN or infinity for this image: give the number format float32") as raised:
        _completion(generation, name="tiny", with_logprobs=with_logprobs)
    assert raised.value.status == 422


@pytest.mark.parametrize("has_template", [True, False])
def test_a_prompt_that_is_assumed_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, has_template: bool
) -> None:
    save_tiny_llava(tmp_path)
    if not has_template:
        (tmp_path / "chat_template.jinja").unlink()
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)
    serve(resolve_model(str(tmp_path)), SETTINGS, limits=LIMITS, host="127.0.0.1", port=0, key_variable=None)
    said = capsys.readouterr().out
    assert "/v1" in said
    assert (f"{tmp_path} has no chat template: prompts are put into LLaVA 1.5's, " in said) is not has_template


def _question(prompt: str, settings: GenerationSettings = SETTINGS) -> Question:
    return Question(pixels=picture(0), prompt=prompt, settings=settings)


def test_what_waits_is_batched_and_one_failure_is_its_own() -> None:
    engine, other = _SlowEngine(), GenerationSettings(max_new_tokens=3)
    batcher = Batcher(engine, max_waiting=6)  # type: ignore[arg-type]
    answers = [batcher.submit(_question("a"))]
    assert engine.started.wait(30)
    waiting = [_question("b"), _question("bad"), _question("c"), _question("d"), _question("e", other), _question("f")]
    answers += [batcher.submit(question) for question in waiting]
    with pytest.raises(BadRequest, match="busy"):
        batcher.submit(_question("one too many"))
    engine.go.set()
    assert [one.exception(30) is None for one in answers] == [True, True, False, True, True, True, True]
    assert [one.result().text for one in answers if one.exception() is None] == ["a", "b", "c", "d", "e", "f"]
    assert engine.batches == [["a"], ["b", "bad", "c"], ["b"], ["bad"], ["c"], ["d"], ["e"], ["f"]]
    batcher.close()
