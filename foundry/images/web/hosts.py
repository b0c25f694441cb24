"""State of each host that images are fetched from: how many fetches it has, whether it is down, and its robots.txt.

Used inside the event loop alone, so that nothing is locked.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from foundry.errors import StoreError
from foundry.images.web.opt_out import Robots
from foundry.images.web.settings import WebSettings
from foundry.units.rejection import ImageError

_MOST_HOSTS = 10_000


@dataclass
class Host:
    """One host. `failures`: in a row and without an answer, of which the first was noted at `failed_since`."""

    slots: asyncio.Semaphore
    failures: int = 0
    failed_since: float = 0.0
    answered_at: float = -1.0
    down_until: float = 0.0
    num_users: int = 0
    robots: "asyncio.Future[Robots] | None" = field(default=None, repr=False)


class Hosts:
    """The hosts that were asked last, and whether the web answers at all."""

    def __init__(self, settings: WebSettings, *, now: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._now = now
        self._hosts: OrderedDict[str, Host] = OrderedDict()
        self._answered_at = -1.0

    @asynccontextmanager
    async def slot(self, name: str) -> AsyncIterator[Host]:
        """Waits until this host may be asked once more. Raises as `check`."""
        host = self._host(name)
        host.num_users += 1
        try:
            async with host.slots:
                self.check(name, host)
                yield host
        finally:
            host.num_users -= 1

    def check(self, name: str, host: Host) -> None:
        """Raises for a host that is down: ImageError where other hosts have answered since, else StoreError, as the network may
        be down.
        """
        if self._now() >= host.down_until:
            return
        finding = (
            f"{name} did not answer {host.failures} times in a row, and is left alone for {self._settings.host_pause_s:g} s"
        )
        if self._answered_at > host.failed_since:
            raise ImageError("unreadable", finding)
        raise StoreError(finding, advice="check the network", is_alone=True)

    def answered(self, host: Host) -> None:
        """Notes an answer, whatever it says."""
        host.failures, host.down_until = 0, 0.0
        host.answered_at = self._answered_at = self._now()

    def failed(self, host: Host, *, started_at: float) -> None:
        """Notes that no answer came; if the host answered others meanwhile, that is not its fault but the image's."""
        if host.answered_at > started_at:
            return
        if not host.failures:
            host.failed_since = self._now()
        host.failures += 1
        if host.failures >= self._settings.host_failures:
            host.down_until = self._now() + self._settings.host_pause_s

    def now(self) -> float:
        """The time in seconds, by which what happens is ordered."""
        return self._now()

    async def robots(self, host: Host, read: Callable[[], Awaitable[Robots]]) -> Robots:
        """The host's robots.txt, which the first who asks reads for all."""
        if host.robots is None:
            host.robots = asyncio.ensure_future(read())
        return await asyncio.shield(host.robots)

    def _host(self, name: str) -> Host:
        if name not in self._hosts:
            idle = [key for key, host in self._hosts.items() if not host.num_users][: len(self._hosts) + 1 - _MOST_HOSTS]
            for key in idle if len(self._hosts) >= _MOST_HOSTS else ():
                del self._hosts[key]
            self._hosts[name] = Host(slots=asyncio.Semaphore(self._settings.parallel_per_host))
        self._hosts.move_to_end(name)
        return self._hosts[name]
