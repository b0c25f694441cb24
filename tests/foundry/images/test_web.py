"""Dead links and dead hosts hold nothing up, no host is asked too much, and who objects is heard; all is accounted for."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from foundry.errors import StoreError
from foundry.images import retries
from foundry.images.decoding import DecodeLimits
from foundry.images.loading import ReadImages, read_images
from foundry.images.web import fetching
from foundry.images.web.hosts import Hosts
from foundry.images.web.opt_out import Robots, objection
from foundry.images.web.settings import WebSettings
from foundry.units.rejection import ImageError
from tests.foundry.images.containers import jpeg
from tests.foundry.images.web import WebServer, serving

QUICK = WebSettings(timeout_s=0.4, host_pause_s=30)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.setattr(retries, "WEB_RETRY_AFTER_S", (0.05,))
    fetching.web_client.cache_clear()
    with serving() as server:
        yield server


def read(urls: list[str], settings: WebSettings = QUICK, *, limits: DecodeLimits | None = None) -> ReadImages:
    return read_images([{"key": url, "uri": url} for url in urls], limits=limits or DecodeLimits(), web=settings)


@pytest.mark.slow
def test_dead_links_do_not_hold_a_unit_up(web: WebServer) -> None:
    """51 of 512 hang; one after the other they would take 41 s, and the others wait for them."""
    urls = [f"{web.url}/{'hang' if n % 10 == 3 else 'good'}-{n}.jpg" for n in range(512)]
    started = time.monotonic()
    found = read(urls)
    seconds = time.monotonic() - started
    assert [one.facts["key"] for one in found.images] == [url for url in urls if "good" in url]
    assert [row["key"] for row in found.rejected] == [url for url in urls if "hang" in url]
    assert {row["reason"] for row in found.rejected} == {"unreadable"}
    assert all("Timeout" in row["message"] for row in found.rejected)
    assert seconds < 51 * 2 * QUICK.timeout_s / QUICK.parallel_per_host + 6, seconds


def test_many_are_fetched_at_once_but_few_of_a_host(web: WebServer) -> None:
    web.delay_s = 0.02
    urls = [f"{web.url}/good-{n}.jpg" for n in range(40)]
    settings = WebSettings(parallel_per_host=5, user_agent="collector/1.0 (+https://example.org)")
    assert len(read(urls, settings).images) == 40
    assert 2 <= web.most <= 5
    assert len(web.asked) == 40, "one request for an image"
    assert web.agents == {"collector/1.0 (+https://example.org)"}


def test_a_host_that_is_down_costs_little_and_its_images_are_accounted_for(web: WebServer) -> None:
    dead = [f"http://127.0.0.1:9/{n}.jpg" for n in range(30)]
    urls = [f"{web.url}/good-0.jpg", *dead, f"{web.url}/good-1.jpg"]
    found = read(urls, WebSettings(parallel_per_host=1, host_failures=3))
    assert len(found.images) == 2
    messages = [row["message"] for row in found.rejected]
    assert len(messages) == 30 and len({row["key"] for row in found.rejected}) == 30
    assert sum("127.0.0.1:9 did not answer" in message for message in messages) >= 28
    assert "is left alone for 60 s" in messages[-1]


def test_without_any_answer_it_is_the_network(web: WebServer) -> None:
    with pytest.raises(StoreError):
        read([f"http://127.0.0.1:9/{n}.jpg" for n in range(40)], WebSettings(parallel_per_host=1, host_failures=3))
    assert not web.asked


def test_a_host_is_asked_again_after_its_pause() -> None:
    now = [0.0]

    async def ask() -> None:
        hosts = Hosts(WebSettings(host_failures=2, host_pause_s=60), now=lambda: now[0])
        async with hosts.slot("dead") as dead, hosts.slot("other") as other:
            hosts.failed(dead, started_at=0.0)
            hosts.failed(dead, started_at=0.0)
            with pytest.raises(StoreError, match="dead did not answer 2 times in a row"):
                hosts.check("dead", dead)
            now[0] = 1.0
            hosts.answered(other)
            with pytest.raises(ImageError, match="left alone for 60 s"):
                hosts.check("dead", dead)
            now[0] = 61.0
            hosts.check("dead", dead)
            hosts.failed(dead, started_at=61.0)
            with pytest.raises(ImageError, match="3 times"):
                hosts.check("dead", dead)
            hosts.answered(dead)
            hosts.check("dead", dead)
            now[0] = 62.0
            hosts.answered(dead)
            for _ in range(9):
                hosts.failed(dead, started_at=61.5)
            hosts.check("dead", dead)  # it answered others while it did not answer these

    asyncio.run(ask())


def test_who_objects_is_rejected_by_a_setting(web: WebServer) -> None:
    urls = [f"{web.url}/{name}.jpg" for name in ("good", "noai", "private", "missing")]
    found = read(urls, WebSettings(robots_txt=True))
    assert [one.facts["key"] for one in found.images] == urls[:1]
    assert {row["key"]: row["reason"] for row in found.rejected} == dict(
        zip(urls[1:], ("opted_out", "opted_out", "unreadable"), strict=True)
    )
    messages = [row["message"] for row in found.rejected]
    assert "sends X-Robots-Tag: noai" in messages[0] and "robots.txt does not allow t2i-foundry" in messages[1]
    assert web.asked.count("/robots.txt") == 1, "once for all"
    assert len(read(urls, WebSettings(opt_out=False)).images) == 3


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([], None),
        (["noarchive, nosnippet"], None),
        (["noarchive,  NOIMAGEAI "], "noimageai"),
        (["googlebot: noai"], None),
        (["T2I-Foundry: noai"], "noai"),
        (["*: none"], "none"),
        (["max-snippet: 10, noai"], "noai"),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST", "noindex"], "noindex"),
    ],
)
def test_objections_in_headers(values: list[str], word: str | None) -> None:
    assert objection(values, user_agent="t2i-foundry/1.0 (+https://example.org)") == word


@pytest.mark.parametrize(("agent", "allowed"), [("t2i-foundry", False), ("otherbot", True), ("*", False)])
def test_robots(agent: str, *, allowed: bool) -> None:
    robots = Robots(f"User-agent: {agent}\nDisallow: /a/")
    assert robots.allows("https://example.org/a/1.jpg", user_agent="t2i-foundry/1.0") is allowed
    assert robots.allows("https://example.org/b/1.jpg", user_agent="t2i-foundry/1.0")
    assert Robots("").allows("https://example.org/a/1.jpg", user_agent="t2i-foundry/1.0")


def test_images_that_wait_are_limited_in_bytes_and_nothing_is_lost(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "MAX_AHEAD_BYTES", 2 * len(jpeg(1)))
    client, urls = fetching.web_client(WebSettings(parallel=2)), [f"{web.url}/good-{n}.jpg" for n in range(12)]
    ahead = fetching.Ahead(client, urls, max_bytes=1 << 20)
    time.sleep(0.5)
    assert len(web.asked) <= 6
    assert [ahead.take(url) for url in urls] == [jpeg(1)] * 12
    assert ahead.take(urls[0]) is None
    ahead.close()


def test_a_large_image_is_rejected_and_not_read_whole(web: WebServer) -> None:
    found = read([f"{web.url}/good-{n}.jpg" for n in range(2)], limits=DecodeLimits(max_image_bytes=10))
    assert [row["reason"] for row in found.rejected] == ["too_many_bytes"] * 2


def test_settings_out_of_bounds() -> None:
    with pytest.raises(ValueError, match="parallel, timeout_s must be above 0"):
        WebSettings(parallel=0, timeout_s=-1)
    with pytest.raises(ValueError, match="user_agent"):
        WebSettings(user_agent=" ")
