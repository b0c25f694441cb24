"""Fetches images from the web: many at once ahead of their reader, through the session of fsspec, whose settings hold.

A fetch that gets no answer is repeated once after a second. What an image is rejected for, and what ends a run, is decided as
for all other stores (foundry/images/retries.py).
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from foundry.errors import StoreError
from foundry.images import retries
from foundry.images.web.hosts import Host, Hosts
from foundry.images.web.opt_out import Robots, objection
from foundry.images.web.settings import WebSettings
from foundry.storage.locations import open_filesystem, shown
from foundry.units.rejection import ImageError

if TYPE_CHECKING:
    import aiohttp

WEB = ("http://", "https://")
MAX_AHEAD_BYTES = 256 << 20
"""Bytes that are fetched ahead of a reader, at most; images that are being fetched come on top."""
_MAX_ROBOTS_BYTES = 512 << 10
_ROOM_S = 0.02


def is_web(uri: str) -> bool:
    """Whether a location is a web address."""
    return uri.startswith(WEB)


class WebClient:
    """Fetches within the limits of its settings, which all readers of a process share."""

    def __init__(self, settings: WebSettings) -> None:
        self.settings = settings
        self._hosts = Hosts(settings)
        self._slots = asyncio.Semaphore(settings.parallel)

    def start(self, url: str, *, max_bytes: int | None, ahead: "Ahead | None" = None) -> "Future[bytes]":
        """Starts a fetch; its result raises ImageError or StoreError. More than `max_bytes` are cut after one byte more."""
        filesystem, _ = open_filesystem(url)
        return asyncio.run_coroutine_threadsafe(self._fetch(filesystem, url, max_bytes, ahead), filesystem.loop)

    async def _fetch(self, filesystem: Any, url: str, max_bytes: int | None, ahead: "Ahead | None") -> bytes:
        for number, pause_s in enumerate((*retries.WEB_RETRY_AFTER_S, None)):
            fetch = partial(self._fetch_once, filesystem, url, max_bytes=max_bytes, ahead=ahead, is_first=not number)
            try:
                while (data := await fetch()) is None:
                    await asyncio.sleep(_ROOM_S)
            except Exception as error:
                failure = retries.judged(error, uri=url, name=shown(url))
                if failure is None:
                    raise
                if pause_s is None or not (isinstance(failure, StoreError) and failure.may_pass):
                    raise failure from error
            else:
                return data
            await asyncio.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    async def _fetch_once(
        self, filesystem: Any, url: str, *, max_bytes: int | None, ahead: "Ahead | None", is_first: bool
    ) -> bytes | None:
        """The image; None where its reader has no room, looked at here so that those who wait hold no slot.

        Only the first try of an image counts against its host, since second tries of dead links gather at the end of a unit.
        """
        async with self._hosts.slot(urlsplit(url).netloc) as host, self._slots:
            if ahead is not None and ahead.is_full(url):
                return None
            session, started_at = await filesystem.set_session(), self._hosts.now()
            options = self._options(filesystem)
            try:
                if self.settings.robots_txt:
                    await self._check_robots(host, session, url, options)
                data, tags = await _get(session, filesystem.encode_url(url), options, max_bytes)
            except Exception as error:
                if _is_answer(error):
                    self._hosts.answered(host)
                elif is_first:
                    self._hosts.failed(host, started_at=started_at)
                raise
            self._hosts.answered(host)
        if self.settings.opt_out and (word := objection(tags, user_agent=self.settings.user_agent)):
            raise ImageError("opted_out", f"{shown(url)}: its server sends X-Robots-Tag: {word}")
        return data

    async def _check_robots(self, host: Host, session: Any, url: str, options: dict[str, Any]) -> None:
        """Raises ImageError for an address that the robots.txt of its host disallows, and what reading that raises."""
        robots = urljoin(url, "/robots.txt")

        async def read() -> Robots:
            async with session.get(robots, **options) as response:
                if response.status >= 500:
                    response.raise_for_status()
                data = await response.content.read(_MAX_ROBOTS_BYTES) if response.status < 400 else b""
                return Robots(data.decode("utf-8", errors="replace"))

        try:
            rules = await self._hosts.robots(host, read)
        except Exception:
            host.robots = None  # whoever comes next asks again
            raise
        if not rules.allows(url, user_agent=self.settings.user_agent):
            raise ImageError("opted_out", f"{shown(url)}: {robots} does not allow {self.settings.user_agent}")

    def _options(self, filesystem: Any) -> dict[str, Any]:
        """Options of a request: those that fsspec is configured with, and ours."""
        import aiohttp

        headers = {"User-Agent": self.settings.user_agent, **filesystem.kwargs.get("headers", {})}
        return {**filesystem.kwargs, "headers": headers, "timeout": aiohttp.ClientTimeout(total=self.settings.timeout_s)}


class Ahead:
    """Fetches of the images that a reader says it will read, in their order. Close it when they are read."""

    def __init__(self, client: WebClient, urls: Sequence[str], *, max_bytes: int) -> None:
        """`max_bytes`: larger images are fetched when they are read."""
        self._max_bytes = max_bytes
        self._wanted: str | None = None
        self._held: dict[str, int] = {}
        self._futures: dict[str, Future[bytes]] = {}
        for url in dict.fromkeys(urls):
            self._futures[url] = future = client.start(url, max_bytes=max_bytes, ahead=self)
            future.add_done_callback(lambda done, url=url: self._hold(url, done))  # type: ignore[misc]

    def is_full(self, url: str) -> bool:
        """Whether so many bytes wait for their reader that this fetch has to wait, unless the reader waits for it."""
        return url != self._wanted and sum(self._held.copy().values()) > MAX_AHEAD_BYTES

    def take(self, url: str) -> bytes | None:
        """The image at an expected address, once; None for another one, or a larger one. Raises as WebClient.start says."""
        future = self._futures.pop(url, None)
        if future is None:
            return None
        self._wanted = url
        try:
            data = future.result()
        finally:
            self._held.pop(url, None)
        return data if len(data) <= self._max_bytes else None

    def close(self) -> None:
        """Ends what was not read."""
        for future in self._futures.values():
            future.cancel()
        self._futures.clear()
        self._held.clear()

    def _hold(self, url: str, done: "Future[bytes]") -> None:
        if url in self._futures and not done.cancelled() and done.exception() is None:
            self._held[url] = len(done.result())


@lru_cache(maxsize=4)
def web_client(settings: WebSettings) -> WebClient:
    """The client of this process with these settings."""
    return WebClient(settings)


async def _get(
    session: "aiohttp.ClientSession", url: Any, options: dict[str, Any], max_bytes: int | None
) -> tuple[bytes, list[str]]:
    """The body and the values of X-Robots-Tag. Raises aiohttp's errors, TimeoutError and OSError."""
    async with session.get(url, **options) as response:
        response.raise_for_status()
        tags = response.headers.getall("X-Robots-Tag", [])
        if max_bytes is None:
            return await response.read(), tags
        parts, size = [], 0
        async for part in response.content.iter_any():
            parts.append(part)
            size += len(part)
            if size > max_bytes:
                break
        return b"".join(parts)[: max_bytes + 1], tags


def _is_answer(error: Exception) -> bool:
    """Whether a host answered, with an error of HTTP."""
    return getattr(error, "status", None) is not None or isinstance(error, ImageError)
