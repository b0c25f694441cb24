"""Rate limit of a server (HTTP 429): all threads that ask it share one pause, and after it fewer ask at one time.

Where the server limits the rate, the number of requests at one time falls by half; with each round of answers it rises by one
(additive increase, multiplicative decrease, as in TCP). So it finds what the server allows, which servers do not say.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
_LOOK_S = 1.0  # between two looks of a thread that waits for its turn


class RateLimited(Exception):
    """The server limits the rate of requests. `retry_after_s` is the pause that it asks for; None: it asks for none."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimit:
    """Turns of the threads that ask one server. `stopped` ends all waits."""

    def __init__(self, stopped: threading.Event) -> None:
        self.answered_at = -math.inf
        """When the server last answered a request, by time.monotonic()."""
        self._stopped = stopped
        self._changed = threading.Condition()
        self._under_way = 0
        self._most = math.inf  # requests at one time
        self._pause_s = FIRST_PAUSE_S
        self._slowed_at = -math.inf
        self._resumes_at = -math.inf

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits for the end of the pause and for a turn; the block asks, and raises RateLimited where the server says so."""
        began_at = self._begin()
        try:
            yield
        except RateLimited as refused:
            self._slow_down(began_at, refused.retry_after_s)
            raise
        else:
            self._speed_up()
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def _begin(self) -> float:
        """When the turn came."""
        while True:
            with self._changed:
                now = monotonic()
                pause_s = self._resumes_at - now
                if self._stopped.is_set() or (pause_s <= 0 and self._under_way + 1 <= self._most):
                    self._under_way += 1
                    return now
                if pause_s <= 0:
                    self._changed.wait(_LOOK_S)
                    continue
            self._stopped.wait(pause_s)

    def _slow_down(self, began_at: float, retry_after_s: float | None) -> None:
        """Of several requests that were under way together, the first that is refused counts."""
        with self._changed:
            now = monotonic()
            is_first = began_at >= self._slowed_at
            if is_first or retry_after_s:
                self._resumes_at = max(self._resumes_at, now + (retry_after_s or self._pause_s))
            if is_first:
                self._slowed_at = now
                self._most = max(1, min(self._most, self._under_way) // 2)
                self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _speed_up(self) -> None:
        with self._changed:
            self.answered_at = monotonic()
            self._pause_s = FIRST_PAUSE_S
            self._most += 1 / self._most
