"""Guard in front of the studio's pages: a plain ASGI middleware that lets through what the pages need, and nothing else.

Gradio can hand out files, take uploads, fetch addresses and run any of its events by name; the studio uses none of this, so
those routes do not exist here. A page of another site can neither send requests here (Origin) nor reach a loopback address
under a name of its own (Host). The content policy forbids the browser to fetch anything from elsewhere.
"""

import hmac
import re
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foundry.http.server import is_loopback_name

COOKIE = "t2i_studio_key"
KEY = "key"
"""Name of the query parameter that signs a browser in."""
_ALLOWED = re.compile(
    r"/(?:|theme\.css|config/?|favicon\.ico|manifest\.json|robots\.txt|pwa_icon(?:/\d+)?|(?:assets|static|svelte)/.*|"
    r"(?:pictures|drawings|grids|pairs)/[\w./-]*|gradio_api/(?:queue/(?:join|data)|heartbeat/[^/]+|startup-events|app_id/?|info/?|"
    r"theme\.css|reset/?|cancel/?|user/?|login_check/?|token/?))"
)
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; object-src 'none'; "
        "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Guard:
    """`key`: what browsers must know, None on a loopback address, where the name of the host is checked instead."""

    def __init__(self, app: ASGIApp, *, key: str | None) -> None:
        self._app = app
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers in the application's place what it must not see."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        await (refusal or self._app)(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> ASGIApp | None:
        host = headers.get("host", "")
        if self._key is None and not is_loopback_name(host):
            return PlainTextResponse(f"open the studio as localhost, not as {host[:80]}\n", 403)
        if (origin := headers.get("origin")) and urlsplit(origin).netloc.lower() != host.lower():
            return PlainTextResponse("requests of other sites are not answered\n", 403)
        if self._key is not None and not self._knows_key(headers):
            return self._sign_in(scope)
        if scope["type"] != "http" or not _ALLOWED.fullmatch(scope["path"]) or ".." in scope["path"]:
            return PlainTextResponse("there is no such page\n", 404)
        return None

    def _knows_key(self, headers: Mapping[str, str]) -> bool:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        given = [headers.get("authorization", "").removeprefix("Bearer "), cookie.value if cookie else ""]
        return any(self._is_key(one) for one in given)

    def _sign_in(self, scope: Scope) -> ASGIApp:
        """Keeps the key of ?key=… in a cookie and leads to the address without it, so that it is in no history."""
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get(KEY, [""])[0]
        if scope["path"] != "/" or not self._is_key(given):
            return PlainTextResponse(f"the key is missing or wrong: open this address with /?{KEY}=…\n", 401)
        response = RedirectResponse("/", 303)
        response.set_cookie(COOKIE, given, httponly=True, samesite="strict")
        return response

    def _is_key(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), (self._key or "").encode()) and bool(given)


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
        await send(message)

    return sending
