"""The guard: a browser of this machine, or one that knows the key, sees the pages; nobody sees files or other routes."""

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.testclient import TestClient

from studio.guard import COOKIE, Guard


async def _anything(scope: object, receive: object, send: object) -> None:
    await PlainTextResponse("inside")(scope, receive, send)  # type: ignore[arg-type]


def _client(key: str | None, host: str = "localhost:7860") -> TestClient:
    app = Starlette(routes=[Mount("/", app=_anything)])
    return TestClient(Guard(app, key=key), base_url=f"http://{host}", follow_redirects=False)


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "[::1]:8000"])
def test_this_machine_sees_the_page_with_a_policy_that_fetches_nothing_elsewhere(host: str) -> None:
    answer = _client(None, host).get("/")
    assert (answer.status_code, answer.text) == (200, "inside")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http:" not in policy and "https:" not in policy
    assert "frame-ancestors 'none'" in policy and answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("host", ["evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example"])
def test_a_name_that_somebody_else_points_here_is_refused(host: str) -> None:
    assert _client(None, host).get("/").status_code == 403


def test_requests_of_other_sites_are_refused() -> None:
    client = _client(None)
    assert client.post("/gradio_api/queue/join", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post("/gradio_api/queue/join", headers={"origin": "null"}).status_code == 403
    assert client.post("/gradio_api/queue/join", headers={"origin": "http://localhost:7860"}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/upload",
        "/gradio_api/proxy=http://example.com",
        "/gradio_api/call/fn",
        "/gradio_api/run/predict",
        "/gradio_api/stream/x",
        "/gradio_api/vibe-edit",
        "/gradio_api/deep_link",
        "/file=/etc/passwd",
        "/pictures/../../etc/passwd",
        "/assets/../../../etc/passwd",
        "/docs",
        "/monitoring",
    ],
)
def test_there_are_no_files_uploads_proxies_or_calls_by_name(path: str) -> None:
    client = _client(None)
    sent = path.replace("..", "%2e%2e")  # else the client resolves the dots
    assert client.get(sent).status_code == client.post(sent).status_code == 404


def test_a_browser_signs_in_by_the_key_and_stays() -> None:
    client = _client("secret", "studio.example")
    assert client.get("/").status_code == 401
    assert client.get("/?key=wrong").status_code == 401
    assert client.get("/pictures/0/x/1/small?key=secret").status_code == 401
    signed_in = client.get("/?key=secret")
    assert (signed_in.status_code, signed_in.headers["location"]) == (303, "/")
    cookie = signed_in.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert client.cookies[COOKIE] == "secret"
    assert client.get("/").text == "inside"
    assert client.get("/pictures/0/x/1/small").text == "inside"
    client.cookies.clear()
    client.cookies.set(COOKIE, "other")
    assert client.get("/").status_code == 401
    client.cookies.clear()
    assert client.get("/", headers={"authorization": "Bearer secret"}).text == "inside"
    assert client.get("/", headers={"authorization": "Bearer "}).status_code == 401
