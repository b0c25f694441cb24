"""The server answers as OpenAI's does, in images that say what they were drawn from, and refuses in a line of JSON."""

import base64
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from foundry.errors import Unavailable
from foundry.http.server import listen
from model.formats.checkpoint import checkpoint_fingerprint
from model.generation.pipeline import Pipeline
from model.generation.request import GenerationRequest
from model.rewriting.rewriter import RewriterRecord
from model.rewriting.rewriting import PromptRewriter
from model.sampling import SamplingConfig
from model.serving.engine import Engine
from model.serving.image_request import RequestReader
from model.serving.metrics import ServerMetrics
from model.serving.server import ImageServer, ServerRewriter, image_app
from model.serving.settings import ServerLimits
from tests.model.serving.conftest import MAX_WAITING, Gate, NewEngine

SAMPLING = SamplingConfig(num_inference_steps=2, guidance_scale=2.0)
LIMITS = ServerLimits(max_request_bytes=5000, max_image_bytes=50_000)
NewApp = Callable[..., FastAPI]


@pytest.fixture
def new_app(new_engine: NewEngine, checkpoint: Path) -> NewApp:
    """Applications on the tiny checkpoint."""

    def make(*, engine: Engine | None = None, key: str | None = None, rewriter: ServerRewriter | None = None) -> FastAPI:
        engine = engine or new_engine()
        reader = RequestReader(name="tiny", adapters=engine.adapters.scales, sampling=SAMPLING, limits=LIMITS, resolution=32)
        server = ImageServer(engine, reader, fingerprint=checkpoint_fingerprint(checkpoint), rewriter=rewriter)
        return image_app(server, key=key)

    return make


@pytest.fixture
def client(new_app: NewApp) -> Iterator[TestClient]:
    with TestClient(new_app(), base_url="http://localhost") as client:
        yield client


def decoded(item: dict[str, Any]) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(item["b64_json"])))
    image.load()
    return image


def ask(client: TestClient, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/images/generations", json={"prompt": "a red owl"} | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def test_images_are_those_of_the_pipeline_and_say_what_they_were_drawn_from(
    client: TestClient, pipeline: Pipeline, checkpoint: Path
) -> None:
    answer = ask(client, n=2, seed=5, size="40x24", steps=3, guidance=1.5, negative_prompt="key")
    assert set(answer) == {"created", "data", "output_format"} and abs(answer["created"] - time.time()) < 60
    sampling = SamplingConfig(num_inference_steps=3, guidance_scale=1.5)
    request = GenerationRequest(
        prompts=("a red owl",), negative_prompt="key", num_images_per_prompt=2, seed=5, height=24, width=40, sampling=sampling
    )
    for item, expected in zip(answer["data"], pipeline(request), strict=True):
        image = decoded(item)
        assert np.abs(np.asarray(image).astype(int) - np.asarray(expected.image)).max() <= 1
        text: dict[str, str] = image.text  # type: ignore[attr-defined]
        assert (text["prompt"], text["negative_prompt"], text["seed"]) == ("a red owl", "key", str(item["seed"]))
        settings = json.loads(text["settings"])
        assert settings["checkpoint"] == "tiny" and settings["checkpoint_fingerprint"] == checkpoint_fingerprint(checkpoint)
        assert (settings["num_inference_steps"], settings["height"], settings["width"]) == (3, 24, 40)
        assert str(checkpoint) not in text["settings"]  # a client learns no path
    assert [item["seed"] for item in answer["data"]] == [5, 6]
    one = ask(client)["data"][0]  # a seed that nobody gave is told, and draws the image again
    assert one["b64_json"] == ask(client, seed=one["seed"])["data"][0]["b64_json"]


def test_a_prompt_that_is_too_long_for_the_encoder_says_so(client: TestClient) -> None:
    assert ask(client, prompt="owl " * 30)["data"][0]["num_cut_tokens"] == 11
    assert "num_cut_tokens" not in ask(client)["data"][0]


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"prompt": "an owl", "n": 11}, 400, "n", "expected 1 to 10"),
        ({"prompt": "an owl", "size": "30x32"}, 400, None, "multiples of 4 px, found 32 x 30"),
        ({"prompt": "an owl", "sampler": "ddim", "eta": 0.5}, 400, None, "eta: expected 0 for the objective"),
        ({"prompt": "an owl", "response_format": "url"}, 400, "response_format", "keeps no images"),
        ({"prompt": "an owl", "model": "other"}, 404, "model", "there is no model 'other'"),
        ({"prompt": "an owl", "rewrite": True}, 400, "rewrite", "no rewriter"),
        ({"prompt": "o" * 6000}, 413, None, "exceeds 5000 bytes"),
        ([], 400, None, "not a JSON object"),
    ],
)
def test_errors_have_the_form_of_openai(client: TestClient, *, body: Any, status: int, param: str | None, message: str) -> None:
    answer = client.post("/v1/images/generations", json=body)
    error = answer.json()["error"]
    assert answer.status_code == status and set(error) == {"message", "type", "param", "code"}
    assert message in error["message"] and error["param"] == param
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")


@pytest.mark.parametrize("data", [b"{", b"\xff", b'{"prompt": "an owl", "guidance": NaN}'])
def test_what_is_no_json_is_refused(client: TestClient, data: bytes) -> None:
    assert client.post("/v1/images/generations", content=data).status_code == 400


def test_unknown_paths_are_told_in_the_same_form(client: TestClient) -> None:
    answer = client.get("/v1/images/generations")
    assert answer.status_code == 405 and "Method Not Allowed" in answer.json()["error"]["message"]
    assert client.post("/v1/images/variations").json()["error"]["message"] == "POST /v1/images/variations: Not Found"


def test_models_and_health_and_metrics(client: TestClient) -> None:
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert client.get("/health").json() == {"status": "ok"}
    ask(client, n=2)
    client.post("/v1/images/generations", json={})
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    values = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    assert values['t2i_requests_total{status="200"}'] == values['t2i_requests_total{status="400"}'] == "1.0"
    assert (values["t2i_images_total"], values["t2i_images_waiting"], values["t2i_images_active"]) == ("2.0", "0.0", "0.0")
    assert float(values["t2i_step_images_sum"]) == 2 * 2 and values["t2i_request_seconds_count"] == "1.0"


def test_a_key_is_asked_for_but_for_health(new_app: NewApp) -> None:
    with TestClient(new_app(key="sk-7"), base_url="http://localhost") as client:
        for path in ("/v1/models", "/metrics"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer sk-8"}).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer sk-7"}).status_code == 200
        assert client.get("/health").status_code == 200
        refused = client.post("/v1/images/generations", json={"prompt": "an owl"}).json()["error"]
        assert refused["type"] == "authentication_error" and "key" in refused["message"]


def test_adapters_are_models_and_a_field(new_app: NewApp, lora_engine: Engine) -> None:
    with TestClient(new_app(engine=lora_engine), base_url="http://localhost") as client:
        assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["tiny", "owl"]
        plain, named, field, none = (
            decoded(ask(client, seed=1, **fields)["data"][0])
            for fields in ({}, {"model": "owl"}, {"lora": ["owl:1"]}, {"lora": ["owl:0"]})
        )
        assert named.tobytes() == field.tobytes() != plain.tobytes() == none.tobytes()
        assert json.loads(named.text["settings"])["lora"][0]["lora"] == "owl"  # type: ignore[attr-defined]


class _Rewriter:
    """Puts words around a prompt; fails on one."""

    record = RewriterRecord()
    identity = "test"

    def rewrite(self, prompts: Sequence[str]) -> Iterator[tuple[int, str]]:
        if "away" in prompts[0]:
            raise Unavailable("the rewriter stays away")
        yield 0, f"{prompts[0]}, on the left"


def test_a_prompt_is_rewritten_unless_the_request_says_no(new_app: NewApp) -> None:
    rewriter = PromptRewriter(_Rewriter(), name="words", count_tokens=lambda text: 5, max_tokens=20)
    with ThreadPoolExecutor(1) as threads:
        served = ServerRewriter(rewriter=rewriter, cache=None, executor=threads)
        with TestClient(new_app(rewriter=served), base_url="http://localhost") as client:
            item = ask(client, seed=1)["data"][0]
            assert item["revised_prompt"] == "a red owl, on the left"
            text: dict[str, str] = decoded(item).text  # type: ignore[attr-defined]
            assert (text["prompt"], text["rewritten_prompt"]) == ("a red owl", "a red owl, on the left")
            written = ask(client, seed=1, rewrite=False)["data"][0]
            assert "revised_prompt" not in written and written["b64_json"] != item["b64_json"]
            as_drawn = decoded(ask(client, prompt="a red owl, on the left", seed=1, rewrite=False)["data"][0])
            assert as_drawn.tobytes() == decoded(item).tobytes()
            away = client.post("/v1/images/generations", json={"prompt": "an owl away"})
            assert away.status_code == 503 and "the rewriter stays away" in away.json()["error"]["message"]


class _SlowRewriter(_Rewriter):
    """Rewrites nothing until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def rewrite(self, prompts: Sequence[str]) -> Iterator[tuple[int, str]]:
        assert self.go.wait(30)
        yield from super().rewrite(prompts)


def test_requests_that_wait_for_the_rewriter_count_as_waiting(new_app: NewApp) -> None:
    slow = _SlowRewriter()
    rewriter = PromptRewriter(slow, name="words", count_tokens=lambda text: 5, max_tokens=20)
    with ThreadPoolExecutor(1) as threads, ThreadPoolExecutor(MAX_WAITING) as clients:
        served = ServerRewriter(rewriter=rewriter, cache=None, executor=threads)
        with TestClient(new_app(rewriter=served), base_url="http://localhost") as client:
            asked = [clients.submit(ask, client, seed=seed) for seed in range(MAX_WAITING)]
            for _ in range(200):
                if float(_metric(client, "t2i_prompts_rewriting")) == MAX_WAITING:
                    break
                time.sleep(0.05)
            answer = client.post("/v1/images/generations", json={"prompt": "an owl"})
            assert answer.status_code == 429 and f"{MAX_WAITING} images wait already" in answer.json()["error"]["message"]
            slow.go.set()
            assert all(len(one.result(60)["data"]) == 1 for one in asked)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_is_edited_where_its_mask_is_transparent_or_white(client: TestClient) -> None:
    image = decoded(ask(client, seed=3)["data"][0]).convert("RGB")
    white = np.zeros((32, 32), np.uint8)
    white[:, 16:] = 255
    transparent = Image.merge("RGBA", [*image.split(), Image.fromarray(255 - white)])
    edited = []
    for mask in (Image.fromarray(white), transparent):
        answer = client.post(
            "/v1/images/edits",
            data={"prompt": "a blue key", "strength": "1.0", "seed": "4", "paste_kept": "true", "response_format": "b64_json"},
            files={"image": ("image.png", png(image), "image/png"), "mask": ("mask.png", png(mask), "image/png")},
        )
        assert answer.status_code == 200, answer.text
        edited.append(np.asarray(decoded(answer.json()["data"][0])))
    assert np.array_equal(edited[0], edited[1])
    assert np.array_equal(edited[0][:, :16], np.asarray(image)[:, :16])
    assert (edited[0][:, 16:] != np.asarray(image)[:, 16:]).mean() > 0.5


@pytest.mark.parametrize(
    ("image", "param", "message"),
    [
        (b"no image", "image", "expected an image file, found not_an_image"),
        (png(Image.new("RGB", (80, 80))), "image", "found too_many_pixels"),
        (png(Image.new("RGB", (30, 32))), "size", "expected an image with sides that 4 divides, found 32 x 30 px"),
    ],
)
def test_an_image_that_cannot_be_edited_is_told(client: TestClient, image: bytes, param: str, message: str) -> None:
    answer = client.post("/v1/images/edits", data={"prompt": "an owl"}, files={"image": ("a.png", image, "image/png")})
    error = answer.json()["error"]
    assert answer.status_code == 400 and message in error["message"] and error["param"] == param


def test_a_full_queue_is_told_with_when_to_ask_again(new_app: NewApp, gate: Gate) -> None:
    gate.close()
    with TestClient(new_app(), base_url="http://localhost") as client, ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(ask, client, n=4)]
        gate.arrival()
        asked.append(threads.submit(ask, client, n=10))
        answer = _once_full(client)
        gate.open()
        assert [len(one.result(60)["data"]) for one in asked] == [4, 10]
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.json()["error"]["type"] == "rate_limit_error" and "images wait already" in answer.json()["error"]["message"]


def _once_full(client: TestClient) -> Any:
    """The first answer that says that the queue is full."""
    for _ in range(200):
        if float(_metric(client, "t2i_images_waiting")) >= 10:
            return client.post("/v1/images/generations", json={"prompt": "an owl", "n": 10})
        time.sleep(0.05)
    raise AssertionError("the queue did not fill up")


def _metric(client: TestClient, name: str) -> str:
    lines = client.get("/metrics").text.splitlines()
    return next(line.rsplit(" ", 1)[1] for line in lines if line.startswith(f"{name} "))


@pytest.fixture
def served(new_app: NewApp) -> Iterator[tuple[str, int]]:
    """The address of a real server, in a thread."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(new_app(), log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield listener.getsockname()
    server.should_exit = True
    thread.join(30)


def test_a_client_that_goes_away_costs_nothing(served: tuple[str, int], gate: Gate) -> None:
    gate.close()
    body = json.dumps({"prompt": "an owl", "steps": 90}).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(served) as connection:
        connection.sendall(head.encode() + body)
        gate.arrival()
    client = http.client.HTTPConnection(*served, timeout=30)

    def abandoned() -> str:
        client.request("GET", "/metrics")
        lines = client.getresponse().read().decode().splitlines()
        return next(line for line in lines if line.startswith("t2i_requests_abandoned_total"))

    for _ in range(100):
        if (found := abandoned()).endswith(" 1.0"):
            break
        time.sleep(0.05)
    gate.open()
    assert found.endswith(" 1.0")
    client.request("POST", "/v1/images/generations", json.dumps({"prompt": "an owl", "steps": 3}))
    assert client.getresponse().status == 200
    client.close()
    assert len(gate.steps) == 1 + 3  # of the 90 steps that the first asked for one was under way


def test_metrics_are_of_one_server() -> None:
    first, second = ServerMetrics(), ServerMetrics()
    first.images.inc()
    assert b"t2i_images_total 1.0" in first.text() and b"t2i_images_total 0.0" in second.text()
