"""OpenAI-compatible endpoint: POST URL/chat/completions, retried while the server is busy or away.

A rate limit (429) is waited for as long as the server answers anything within ten minutes, and is no try of a
request; other outages have a number of tries.

The key comes from an environment variable. It is sent in the header alone, to the given address alone (no redirect is
followed), and is cut out of every text of the endpoint that is kept or shown.

httpx carries the requests. The openai client is not used, since it reads an answer of any size; nor is tenacity, since it asks
once more when `stop` cuts a pause short.
"""

import base64
import email.utils
import io
import json
import math
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import httpx

from foundry.errors import Unavailable, UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

T = TypeVar("T")
_MAX_ANSWER_BYTES = 10 << 20
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_LOOK_S = 1.0  # between two looks of a thread that waits for its turn
_LONGEST_WAIT_S = 600.0
"""Longest pause in seconds that an endpoint may ask for, and longest time in which a rate limit may let nothing through; beyond
it `ask` gives up, to be resumed another day."""
_RATE_LIMIT = 429
_MAY_PASS = {408, 409, 425, _RATE_LIMIT, *range(500, 600)}
_FOR_GOOD = ("insufficient_quota", "billing_hard_limit_reached")
_OF_KEY = {401, 403}
_DECLINED = "refusal"
_REFUSES_THE_IMAGE = ("content_policy_violation", "content_filter", "moderation_blocked")
_OWN_FAULT = {400, 413, 415, 422}
_HIDDEN = "[key]"


class RequestRefused(UserError):
    """The endpoint works, and refuses this request: too large, malformed, or an image that it cannot read."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one request."""

    text: str
    """Empty where it said nothing."""
    finish_reason: str
    """Finish reason of the endpoint: `stop`, `length`, …; an error's code where it refused this image; `refusal` where the
    model declined in a separate field."""
    input_tokens: int | None
    """Number counted by the endpoint; None if it does not count."""
    output_tokens: int | None
    answered_by: str | None = None
    """The model that the endpoint says it is; None if it does not."""
    logprobs: tuple[float, ...] | None = None
    """Natural log-probability of each token of the answer; None if the endpoint gives none."""

    @property
    def is_refusal(self) -> bool:
        """Whether a content filter withheld or cut the answer, or the model declined: then the text is no answer."""
        return self.finish_reason in (*_REFUSES_THE_IMAGE, _DECLINED)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An address to ask, and how patiently."""

    url: str
    """Base URL, such as http://127.0.0.1:8000/v1."""
    key_variable: str | None
    """Name of the environment variable that holds the API key; None: send no key."""
    timeout_s: float
    """Timeout of a request, in seconds."""
    tries: int
    """Attempts at a request while the endpoint is down; the pauses between them double from 1 s to 60 s."""
    name: str
    """Its name in messages, such as `the judge`."""
    section: str
    """Section of its settings, such as `judge`, for messages."""


class _RateLimited(Exception):
    """The server limits the rate of requests. `retry_after_s` is the pause that it asks for; None: it asks for none."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class _RateLimit:
    """Turns of the threads that ask one server, which share its rate limit: one pause, and after it fewer at one time.

    Where the server limits the rate, the number of requests at one time falls by half; with each round of answers it rises by
    one (additive increase, multiplicative decrease, as in TCP). So it finds what the server allows, which servers do not say.
    `stopped` ends all waits.
    """

    def __init__(self, stopped: threading.Event) -> None:
        self.answered_at = -math.inf
        """When the server last answered a request, by time.monotonic()."""
        self._stopped = stopped
        self._changed = threading.Condition()
        self._under_way = 0
        self._most = math.inf  # requests at one time
        self._pause_s = _FIRST_PAUSE_S
        self._slowed_at = -math.inf
        self._resumes_at = -math.inf

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits for the end of the pause and for a turn; the block asks, and raises _RateLimited if the server says so."""
        began_at = self._begin()
        try:
            yield
        except _RateLimited as refused:
            self._slow_down(began_at, refused.retry_after_s)
            raise
        else:
            self._speed_up()
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def _begin(self) -> float:
        """Time when the turn came."""
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
        """Slows down; of several requests in progress together, the first refusal counts."""
        with self._changed:
            now = monotonic()
            is_first = began_at >= self._slowed_at
            if is_first or retry_after_s:
                self._resumes_at = max(self._resumes_at, now + (retry_after_s or self._pause_s))
            if is_first:
                self._slowed_at = now
                self._most = max(1, min(self._most, self._under_way) // 2)
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def _speed_up(self) -> None:
        with self._changed:
            self.answered_at = monotonic()
            self._pause_s = _FIRST_PAUSE_S
            self._most += 1 / self._most


class ChatEndpoint:
    """An endpoint that can be asked. Several threads may ask at once."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Raises UserError if the key is missing."""
        self._endpoint = endpoint
        base = endpoint.url.rstrip("/").removesuffix("/chat/completions")
        self.address = base + "/chat/completions"
        self._models = base + "/models"
        self._key = read_key(endpoint.key_variable, setting=f"{endpoint.section}.key_variable")
        self._stopped = threading.Event()
        self._limit = _RateLimit(self._stopped)
        self._client = httpx.Client(
            timeout=endpoint.timeout_s,
            verify=ssl.create_default_context(),  # the certificates of this machine, which may know one of the user's own
            follow_redirects=False,  # the key is sent to the given address alone
            limits=httpx.Limits(max_connections=None),
            headers={"Accept-Encoding": "identity"},
        )

    def ask(self, body: Mapping[str, Any]) -> Answer:
        """The answer to one request. Raises RequestRefused if the request is at fault, Unavailable where the endpoint
        refuses all, stays out after all tries, or lets nothing through its rate limit for ten minutes.

        `body` holds model, messages and what else the request has, as OpenAI's chat completions take it.
        """
        data = json.dumps(body).encode()
        advice = "the same command resumes where this one ended"
        return self._patiently(lambda: self._answer(self._call("POST", self.address, data)), at=self.address, advice=advice)

    def models(self) -> dict[str, dict[str, Any]]:
        """The endpoint's entry for each model that it serves, by name. Raises as `ask`."""

        def read() -> dict[str, dict[str, Any]]:
            data = self._call("GET", self._models, None)
            try:
                return {str(one["id"]): dict(one) for one in json.loads(data)["data"]}
            except (ValueError, KeyError, TypeError, AttributeError):
                raise _Outage(f"no list of models: {self._shown(data[:2000].decode(errors='replace'))}") from None

        return self._patiently(read, at=self._models, advice="start it, or give its address")

    def stop(self) -> None:
        """Asks nothing more, and ends the pauses of requests that are tried again."""
        self._stopped.set()

    def _patiently(self, request: Callable[[], T], *, at: str, advice: str) -> T:
        """Result of a request to an address, retried after each outage; `advice`: what to do if it stays down."""
        began_at, pause_s, tries_left = monotonic(), _FIRST_PAUSE_S, self._endpoint.tries
        while True:
            try:
                with self._limit.turn():
                    if self._stopped.is_set():
                        raise Unavailable(f"requests to {self._endpoint.name} at {at} were stopped")
                    return request()
            except _RateLimited as limited:
                waited_s = monotonic() - max(began_at, self._limit.answered_at)
                wait_s, error = limited.retry_after_s or 0.0, str(limited)
                is_over = waited_s > _LONGEST_WAIT_S
            except _Outage as outage:
                wait_s, error = pause_s if outage.retry_after_s is None else outage.retry_after_s, str(outage)
                tries_left -= 1
                is_over = not tries_left or (wait_s <= _LONGEST_WAIT_S and self._stopped.wait(wait_s))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            if is_over or wait_s > _LONGEST_WAIT_S:
                asked_to_wait = f" and asks to wait {wait_s:.0f} s" if wait_s > _LONGEST_WAIT_S else ""
                raise Unavailable(
                    f"{self._endpoint.name} at {at} does not answer{asked_to_wait} ({error}); {advice}",
                    setting=f"{self._endpoint.section}.url",
                )

    def _call(self, method: str, address: str, data: bytes | None) -> bytes:
        """The bytes of a good answer, or of one that refuses this image. Raises _Outage, or UserError for what stays so."""
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self._key}"} if self._key else {})}
        try:
            with self._client.stream(method, address, content=data, headers=headers) as response:
                if response.is_success:
                    return _limited(response)
                return self._refusal(response)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _Outage(self._shown(f"{type(error).__name__}: {error}")) from None

    def _refusal(self, response: httpx.Response) -> bytes:
        try:
            text = _limited(response).decode(errors="replace")
        except httpx.HTTPError:
            text = ""
        if any(code in text for code in _REFUSES_THE_IMAGE):
            return text.encode()
        message = self._shown(f"HTTP {response.status_code} {text}")
        if response.status_code in _MAY_PASS and not any(code in text for code in _FOR_GOOD):
            kind = _RateLimited if response.status_code == _RATE_LIMIT else _Outage
            raise kind(message, retry_after_s=_retry_after_s(response.headers))
        if response.status_code in _OF_KEY:
            raise self._key_refused(message)
        refused = RequestRefused if response.status_code in _OWN_FAULT else Unavailable
        raise refused(
            f"{self._endpoint.name} at {self.address} refuses ({message}): check the address, the model's name and the fields "
            "of the request",
            setting=f"{self._endpoint.section}.url",
        )

    def _key_refused(self, message: str) -> Unavailable:
        variable = self._endpoint.key_variable
        said = f"refuses the key in {variable} ({message}): check the key and what it allows"
        if variable is None:
            said = f"refuses ({message}), and no key was sent: name the environment variable that holds one"
        return Unavailable(f"{self._endpoint.name} at {self.address} {said}", setting=f"{self._endpoint.section}.key_variable")

    def _answer(self, data: bytes) -> Answer:
        """Reads an answer's JSON. One with neither choices nor a known refusal comes from a gateway, and is retried."""
        try:
            found = json.loads(data)
            error = found.get("error")
            if error:
                code = next((code for code in _REFUSES_THE_IMAGE if code in json.dumps(error)), None)
                if code is None:
                    raise _Outage(self._shown(json.dumps(error)))
                return Answer(text="", finish_reason=code, input_tokens=None, output_tokens=None)
            choice = found["choices"][0]
            text, usage = choice["message"].get("content") or "", found.get("usage") or {}
            declined = choice["message"].get("refusal")
            text = text or declined or ""
            return Answer(
                text=self._hidden(text if isinstance(text, str) else json.dumps(text)),
                finish_reason=_DECLINED if declined else self._hidden(str(choice.get("finish_reason"))),
                input_tokens=usage.get("prompt_tokens"),
                output_tokens=usage.get("completion_tokens"),
                answered_by=None if found.get("model") is None else self._hidden(str(found["model"])),
                logprobs=_logprobs(choice),
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise _Outage(f"no chat completion: {self._shown(data[:2000].decode(errors='replace'))}") from None

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, _HIDDEN) if self._key else text

    def _shown(self, text: str) -> str:
        """One short line, without the key."""
        return " ".join(self._hidden(text).split())[:300]


def read_key(variable: str | None, *, setting: str) -> str | None:
    """The key in an environment variable, which `setting` names; None for no variable. Raises UserError."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"the environment variable {variable} is not set: export it", setting=setting)
    if not (key.isascii() and key.isprintable()):  # httpx would put the whole header into its complaint
        raise UserError(f"the environment variable {variable} holds no key: it has characters that no header can have")
    return key


def image_url(pixels: "npt.NDArray[np.uint8]", image_format: Literal["png", "jpeg"] = "png") -> str:
    """An image, uint8 RGB (H, W, 3), as a data URL of a PNG, or of a JPEG of quality 95: pixels alone."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **({"quality": 95} if image_format == "jpeg" else {}))
    return f"data:image/{image_format};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def image_message(text: str, images: Sequence[str]) -> dict[str, Any]:
    """A user's message with images, by their URLs, before its text."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


class _Outage(Exception):
    """A failure that may pass."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def _limited(response: httpx.Response) -> bytes:
    """The body, as far as it is read."""
    found = bytearray()
    for piece in response.iter_bytes():
        found += piece
        if len(found) >= _MAX_ANSWER_BYTES:
            break
    return bytes(found[:_MAX_ANSWER_BYTES])


def _logprobs(choice: Mapping[str, Any]) -> tuple[float, ...] | None:
    tokens = (choice.get("logprobs") or {}).get("content")
    # JSON has no NaN: some servers write null for it.
    return tuple(float("nan" if token["logprob"] is None else token["logprob"]) for token in tokens) if tokens else None


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds, of a number of them or of a date."""
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        parsed = email.utils.parsedate_tz(value)
        return max(0.0, email.utils.mktime_tz(parsed) - time.time()) if parsed else None
