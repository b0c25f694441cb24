"""Hostile requests: servers refuse them with a status and a message, and answer the next one."""

import random
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from captioner.engines.generation import GenerationSettings
from captioner.engines.server import ServerLimits, read_question
from foundry.chat_endpoint import image_message
from foundry.errors import UserError
from foundry.http.server import BadRequest, listen, new_app, read_json, read_server_key
from model.sampling import SamplingConfig
from model.serving.image_request import RequestReader
from model.serving.settings import ServerLimits as ImageLimits
from tests.faults.conftest import Tally

MAX_BYTES = 10_000
KEY = "sk-of-a-test"


def echo(key: str | None = None) -> FastAPI:
    """An application as those of captions and images are, which answers what it read."""
    app = new_app("echo", key=key, on_shutdown=lambda: None)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/echo")
    async def answer(request: Request) -> Any:
        return {"read": len(await read_json(request, max_bytes=MAX_BYTES))}

    return app


BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "no object": b"[1, 2]",
    "no text": b"\xff\xfe{}",
    "NULs": bytes(1000),
    "NaN": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "a lone surrogate": b'{"a": "\\uD800"}',
    "deep lists": b'{"a": ' + b"[" * 4_000 + b"]" * 4_000,
    "open lists": b"[" * 9_000,
    "deep objects": b'{"a":' * 1_900,
    "a long number": b'{"a": ' + b"9" * 9_000 + b"}",
    "too much": b'{"a": "' + b"x" * MAX_BYTES + b'"}',
    "far too much": b"x" * (20 << 20),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_is_refused_in_one_line(name: str, tally: Tally) -> None:
    with TestClient(echo(), base_url="http://localhost", raise_server_exceptions=False) as client:
        answer = client.post("/v1/echo", content=BODIES[name])
        message = answer.json()["error"]["message"]
        assert answer.status_code == (413 if "too much" in name else 400), (answer.status_code, message)
        assert "\n" not in message and len(message) < 500
        assert client.post("/v1/echo", json={"a": 1}).json() == {"read": 1}, "it answers as before"
    tally("requests", 1)


FOREIGN = [
    {"host": "evil.example"},
    {"host": "127.0.0.1.evil.example:80"},
    {"host": "localhost.evil.example"},
    {"host": "user@localhost"},
    {"host": ""},
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "http://localhost@evil.example"},
    {"origin": "http://localhost.evil.example"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_pages_of_other_sites_cannot_ask_a_server_of_this_machine(headers: dict[str, str], tally: Tally) -> None:
    with TestClient(echo(), base_url="http://localhost") as client:
        assert client.post("/v1/echo", content=b"{}", headers=headers | {"content-type": "text/plain"}).status_code == 403
        assert client.post("/v1/echo", json={}, headers={"origin": "http://localhost:3000"}).status_code == 200
    tally("requests", 1)


GIVEN = [
    "",
    "Bearer",
    "Bearer ",
    f"bearer {KEY}",
    f"Bearer {KEY} ",
    f"Bearer {KEY}x",
    f"Basic {KEY}",
    KEY,
    "Bearer \xff",
    "x" * 50_000,
]


@pytest.mark.parametrize("given", GIVEN, ids=lambda given: given[:20])
def test_only_the_key_opens(given: str, tally: Tally) -> None:
    with TestClient(echo(KEY), base_url="http://elsewhere.example") as client:
        for path in ("/v1/echo", "/docs", "/openapi.json", "/../v1/echo", "//v1/echo", "/health/", "/health/../v1/echo"):
            answer = client.post(path, content=b"{}", headers={b"authorization": given.encode("latin-1")})
            assert answer.status_code == 401 and KEY not in answer.text, path
            tally("requests", 1)
        assert client.post("/v1/echo", json={}, headers={"authorization": f"Bearer {KEY}"}).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com", "localhost.example.com", "127.0.0.1.example.com"])
def test_another_address_than_loopback_needs_a_key(host: str, tally: Tally) -> None:
    with pytest.raises(UserError, match="can be reached from other machines"):
        read_server_key(None, None, host=host)
    tally("requests", 1)


VALUES: list[Any] = [
    *(None, True, False, 0, -1, 10**30, 1e308, float("inf"), float("nan"), "", "x" * 5_000, "\0", "\ud800", "../../etc/passwd"),
    *([], {}, [None], {"a": 1}, [[]] * 100, "512x512", "99999999x99999999", "-1x-1", "0x0", "file:///etc/passwd", "<|im_end|>"),
    *("http://127.0.0.1:9/a.png", "data:image/png;base64,AAAA", "data:,", "data:;base64", "1e999", "٣"),
]
IMAGES = RequestReader(
    name="tiny", adapters={}, sampling=SamplingConfig(num_inference_steps=2), limits=ImageLimits(), resolution=32
)
IMAGE_BODY: dict[str, Any] = {"prompt": "an owl", "model": "tiny", "n": 1, "size": "32x32", "seed": 1, "num_inference_steps": 2}
CAPTION_BODY: dict[str, Any] = {
    "model": "tiny",
    "messages": [image_message("What is it?", ["data:image/png;base64,AAAA"])],
    "max_tokens": 4,
    "temperature": 0.5,
    "top_p": 0.5,
    "seed": 1,
    "logprobs": True,
}


def _read_caption(body: dict[str, Any]) -> object:
    return read_question(body, name="tiny", defaults=GenerationSettings(), limits=ServerLimits(), image_side_px=32)


def changed(value: Any, rng: random.Random) -> Any:
    """The value with one part of it in another's place, left out or added."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        kept = {key: part for key, part in value.items() if key != name or rng.random() < 0.9}
        return {**kept, (name if rng.random() < 0.95 else "extra"): changed(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        return [*value[:place], changed(value[place], rng), *value[place + 1 :]]
    return rng.choice(VALUES)


@pytest.mark.parametrize("count", [300, pytest.param(5_000, marks=pytest.mark.faults)])
@pytest.mark.parametrize(
    ("body", "read"), [(IMAGE_BODY, IMAGES.read), (CAPTION_BODY, _read_caption)], ids=["images", "captions"]
)
def test_a_request_is_read_or_refused(
    body: dict[str, Any], read: Callable[[dict[str, Any]], object], rng: random.Random, *, count: int, tally: Tally
) -> None:
    for _ in range(count):
        hostile = changed(body, rng)
        hostile = hostile if isinstance(hostile, dict) else {}
        message = "read"
        try:
            read(hostile)
        except BadRequest as error:
            message = str(error)
        except Exception as error:
            raise AssertionError(repr(hostile)[:500]) from error
        assert message and "\n" not in message, (message[:300], repr(hostile)[:300])
    tally("requests", count)


@pytest.fixture
def address() -> Iterator[tuple[str, int]]:
    """A server that runs, as run_server starts it."""
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(echo(), log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()
        server.should_exit = server.force_exit = True
        thread.join()


def exchange(address: tuple[str, int], data: bytes) -> bytes:
    """The beginning of the answer to bytes that are no HTTP, or are."""
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return client.recv(1_000)


_POST = b"POST /v1/echo HTTP/1.1\r\nhost: localhost\r\n"
RAW = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a long line": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
    "many headers": b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"a: b\r\n" * 50_000 + b"\r\n",
    "a long header": b"GET /health HTTP/1.1\r\nhost: localhost\r\na: " + b"b" * 1_000_000 + b"\r\n\r\n",
    "two lengths": _POST + b"content-length: 2\r\ncontent-length: 20\r\n\r\n{}",
    "a length and chunks": _POST + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "no length": _POST + b"content-length: -1\r\n\r\n{}",
    "a huge length": _POST + b"content-length: 99999999999999999999\r\n\r\n{}",
    "half a body": _POST + b"content-length: 100\r\n\r\n{",
    "a bad chunk": _POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a split header": b"GET /health HTTP/1.1\r\nhost: localhost\r\na: b\n c\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "a proxy's request": b"GET http://127.0.0.1:9/ HTTP/1.1\r\nhost: 127.0.0.1:9\r\n\r\n",
    "a tunnel": b"CONNECT 127.0.0.1:9 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "a path above": b"GET /../../../etc/passwd HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "an escaped path above": b"GET /%2e%2e/%2e%2e/etc/passwd%00 HTTP/1.1\r\nhost: localhost\r\n\r\n",
}


def test_what_is_no_request_is_refused(address: tuple[str, int], tally: Tally) -> None:
    for name, data in RAW.items():
        try:
            said = exchange(address, data)
        except ConnectionError:  # closed while it was sent
            said = b""
        assert not said.startswith(b"HTTP/1.1 2") or name in ("many headers", "a long header", "a split header"), (name, said)
        assert b"root:" not in said and b"Traceback" not in said
        assert exchange(address, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").startswith(b"HTTP/1.1 200"), name
    tally("requests", len(RAW))


@pytest.mark.slow
def test_slow_clients_keep_nobody_waiting(address: tuple[str, int], tally: Tally) -> None:
    free = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200
    count = min(1_000, free // 2)  # both ends are in this process
    with ExitStack() as stack:
        for number in range(count):
            client = stack.enter_context(socket.create_connection(address, timeout=30))
            client.sendall([b"", b"GET /hea", _POST, _POST + b"content-length: 99\r\n\r\n{"][number % 4])
        began = time.monotonic()
        for _ in range(20):
            assert b"200 OK" in exchange(address, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert time.monotonic() - began < 20
    assert b"200 OK" in exchange(address, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
    tally("connections", count)
