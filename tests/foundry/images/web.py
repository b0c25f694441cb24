"""A web server for tests, which also hangs, objects and counts who asks at once."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from tests.foundry.images.containers import jpeg


class WebServer(ThreadingHTTPServer):
    """/good… is an image, /hang… never answers, /noai… objects, /robots.txt disallows /private, all others are missing."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.asked: list[str] = []
        self.agents: set[str] = set()
        self.delay_s = 0.0

    @property
    def url(self) -> str:
        """The address, without a slash at the end."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: WebServer

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.asked.append(self.path)
            server.agents.add(self.headers["User-Agent"])
            server.now += 1
            server.most = max(server.most, server.now)
        try:
            if self.path.startswith("/hang"):
                server.ended.wait(60)
                return
            time.sleep(server.delay_s)
            self._answer()
        finally:
            with server.lock:
                server.now -= 1

    def _answer(self) -> None:
        robots = b"User-agent: *\nDisallow: /private\n"
        is_image = self.path.startswith(("/good", "/noai", "/private"))
        body = robots if self.path == "/robots.txt" else jpeg(1) if is_image else b""
        self.send_response(200 if body else 404)
        if self.path.startswith("/noai"):
            self.send_header("X-Robots-Tag", "otherbot: nofollow")
            self.send_header("X-Robots-Tag", "noarchive, NoAI")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[WebServer]:
    """A running server."""
    server = WebServer()
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
