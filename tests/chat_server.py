"""A judge, or a captioner of the name `m`, on loopback that answers as told."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the server sends back."""

    body: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


MODEL = "gpt-4o-2024-05-13"


def says(text: str | None, *, finish_reason: str = "stop", model: str = MODEL) -> Reply:
    """A chat completion with this text, by a model of this name."""
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 900, "completion_tokens": 15}
    return Reply(body=json.dumps({"model": model, "choices": [choice], "usage": usage}))


def fails(status: int, code: str = "", **headers: str) -> Reply:
    """An error as OpenAI writes them."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(body=json.dumps({"error": {"code": code, "message": f"status {status}"}}), status=status, headers=named)


@dataclass
class JudgeServer:
    """A running judge, and what it was asked."""

    url: str
    reply: Callable[[dict[str, Any]], Reply]
    """Of the body of a request; may be replaced."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Of the requests, in order."""
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    listed: dict[str, Any] = field(default_factory=dict)
    """What the list of models says of `m`, besides its name."""

    def texts(self) -> list[str]:
        """What each request asks, without its image."""
        return [text_of(body) for body in self.bodies]


def text_of(body: dict[str, Any]) -> str:
    """All text of a request."""
    parts = [part for message in body["messages"] for part in message["content"]]
    return "\n".join(part["text"] for part in parts if part["type"] == "text")


@contextmanager
def judge_server(reply: Callable[[dict[str, Any]], Reply]) -> Iterator[JudgeServer]:
    """Runs until the block ends."""
    lock = threading.Lock()
    under_way = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            models = {"data": [{"id": "m", **judge.listed}, {"id": MODEL}]}
            self._send(Reply(body=json.dumps(models)) if self.path == "/v1/models" else fails(404))

        def do_POST(self) -> None:
            nonlocal under_way
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                under_way += 1
                judge.most_at_once = max(judge.most_at_once, under_way)
                judge.bodies.append(body)
                judge.headers.append(dict(self.headers))
            answer = judge.reply(body) if self.path == "/v1/chat/completions" else fails(404)
            with lock:
                under_way -= 1
            self._send(answer)

        def _send(self, answer: Reply) -> None:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            data = answer.body.encode()
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    judge = JudgeServer(url=f"http://127.0.0.1:{server.server_address[1]}/v1", reply=reply)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
