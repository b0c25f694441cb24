"""HTTP server of a command: its address and key, bodies within a limit, errors in OpenAI's form, a stop in good order.

Errors are {"error": {"message", "type", "param", "code"}}, as clients of OpenAI read them. The key is asked for by a plain ASGI
middleware: Starlette's own would hide from the endpoints that a client disconnects.
"""

import hmac
import ipaddress
import json
import re
import signal
import socket
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from foundry.chat_endpoint import read_key
from foundry.errors import UserError, one_line

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
"""Types of errors by their status; others follow from the hundreds."""


class BadRequest(Exception):
    """A request that cannot be answered; the message says what is wrong with it."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, retry_after_s: int | None = None) -> None:
        """`param`: the field that is wrong. `retry_after_s`: seconds after which the client may ask again."""
        super().__init__(message)
        self.status = status
        self.param = param
        self.retry_after_s = retry_after_s


class KeyGuard:
    """Middleware that asks for a key, as a bearer token, but for `open_paths`."""

    def __init__(self, app: ASGIApp, *, key: str, open_paths: Collection[str]) -> None:
        self._app = app
        self._expected = f"Bearer {key}".encode()
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers with status 401 in the application's place where the key is missing or wrong."""
        if scope["type"] == "http" and scope["path"] not in self._open_paths:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                await failure("the key is missing or wrong", status=401)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class LoopbackGuard:
    """Middleware of a server without a key: only programs and pages of this machine may ask.

    A page of another site can send requests to a loopback address, which its Origin tells, or to a name of that site that leads
    here, which Host tells.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers with status 403 in the application's place what comes from elsewhere."""
        if scope["type"] == "http":
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            if not is_loopback_name(host := headers.get("host", "")):
                message = f"call the server localhost, not {host[:80]}, or start it with a key"
                await failure(message, status=403)(scope, receive, send)
                return
            if (origin := headers.get("origin")) is not None and not is_loopback_name(urlsplit(origin).netloc):
                await failure("requests of other sites need a key: start the server with one", status=403)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def is_loopback_name(netloc: str) -> bool:
    """Whether a host, with or without its port, is a loopback name or address."""
    return _is_loopback(re.sub(r":\d+$", "", netloc).lower().strip("[]"))


def new_app(title: str, *, key: str | None, on_shutdown: Callable[[], object]) -> FastAPI:
    """An application whose errors have OpenAI's form, which asks for the key, but at /health; without one see LoopbackGuard."""
    app = FastAPI(title=title, on_shutdown=[on_shutdown])
    if key is None:
        app.add_middleware(LoopbackGuard)
    else:
        app.add_middleware(KeyGuard, key=key, open_paths=("/health",))

    @app.exception_handler(BadRequest)
    async def bad_request(_request: Request, error: BadRequest) -> JSONResponse:
        return failure(str(error), status=error.status, param=error.param, retry_after_s=error.retry_after_s)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        return failure(f"{request.method} {request.url.path}: {error.detail}", status=error.status_code)

    @app.exception_handler(Exception)
    async def broken(_request: Request, error: Exception) -> JSONResponse:
        return failure(f"the server failed: {type(error).__name__}; its log has more", status=500)

    return app


def failure(message: str, *, status: int, param: str | None = None, retry_after_s: int | None = None) -> JSONResponse:
    """The answer that tells of an error."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "param": param, "code": status}
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return JSONResponse({"error": error}, status_code=status, headers=headers)


async def read_body(request: Request, *, max_bytes: int) -> bytes:
    """The body of a request. Raises BadRequest (413), before all of it is read, where it is too long."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > max_bytes:
            raise BadRequest(f"the request exceeds {max_bytes} bytes", status=413)
    return bytes(data)


async def read_json(request: Request, *, max_bytes: int) -> Mapping[str, Any]:
    """The JSON object that was sent. Raises BadRequest where it is none, or too long."""
    try:
        data = await read_body(request, max_bytes=max_bytes)
        body = json.loads(data, parse_constant=_no_constant)
        if b"\\ud" in data.lower():
            json.dumps(body, ensure_ascii=False).encode()  # a lone surrogate is no text
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the request is not valid JSON: {one_line(error)}") from None
    if not isinstance(body, dict):
        raise BadRequest("the request is not a JSON object")
    return body


def models_list(names: Collection[str]) -> dict[str, Any]:
    """The answer of /v1/models."""
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "t2i-foundry"} for name in names]
    return {"object": "list", "data": data}


def read_server_key(variable: str | None, file: str | None, *, host: str) -> str | None:
    """The key that clients must send, from an environment variable or a file; None where none is asked for.

    Raises UserError where it is missing, given twice, or none is named and `host` is no loopback address.
    """
    if variable is not None and file is not None:
        raise UserError("the key is in a variable and in a file: name one of them", setting="key_file")
    key = read_key(variable, setting="key_variable") if file is None else _key_in_file(file)
    if key is None and not _is_loopback(host):
        raise UserError(
            f"{host} can be reached from other machines: name the variable of a key for them, or its file",
            setting="key_variable",
        )
    return key


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is a free one. Raises UserError for an address that is taken or none of this machine's."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(f"{host}:{port} cannot be listened on ({error.strerror}): give another port", setting="port") from None


def address_of(listener: socket.socket) -> str:
    """The base URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def run_server(
    app: FastAPI, listener: socket.socket, *, grace_s: int | None = None, on_stop: Callable[[], object] = lambda: None
) -> None:
    """Serves until SIGTERM or Ctrl-C; requests under way have `grace_s` seconds to be answered, by default any time.

    `on_stop` is called in the event loop when the signal has come. SIGTERM ends the server in good order, and returns; Ctrl-C
    raises KeyboardInterrupt.
    """

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            on_stop()
            await super().shutdown(sockets)

    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=grace_s)
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: None)  # uvicorn raises the signal again when it is done
    try:
        Server(config).run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number there")


def _key_in_file(path: str) -> str:
    try:
        key = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): give a file that holds the key", setting="key_file") from None
    if not (key and key.isascii() and key.isprintable()):
        raise UserError(f"{path} holds no key: expected one line of printable ASCII characters", setting="key_file")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
