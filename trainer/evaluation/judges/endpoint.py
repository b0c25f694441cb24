"""Judge behind an OpenAI-compatible endpoint: POST URL/chat/completions, retried while it is busy. Its answers are kept as they
come, one JSON line each in DIR/answers/<judge>.jsonl, so that none is paid for twice.

The key comes from an environment variable. It is sent in the header alone, to the given address alone (no redirect is
followed), and is cut out of every text of the endpoint that is kept or shown.

httpx carries the requests. The openai client is not used, since it reads an answer of any size; nor is tenacity, since it asks
once more when `stop` cuts a pause short.
"""

import base64
import dataclasses
import email.utils
import hashlib
import io
import json
import os
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
from PIL import Image

from foundry.errors import UserError
from foundry.storage.json_lines import open_rows
from trainer.evaluation.config import JudgeEndpointConfig

_MAX_ANSWER_BYTES = 10 << 20
_LONGEST_PAUSE_S = 60.0
_LONGEST_WAIT_S = 600.0
"""Longest pause in seconds that an endpoint may ask for; beyond it the evaluation ends, to be resumed another day."""
_MAY_PASS = {408, 409, 425, 429, *range(500, 600)}
_FOR_GOOD = ("insufficient_quota", "billing_hard_limit_reached")
_REFUSES_THE_IMAGE = ("content_policy_violation", "content_filter", "moderation_blocked")
_HIDDEN = "[key]"
ANSWERS = "answers"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The judge's answer to one question."""

    text: str
    """Empty where it said nothing."""
    finish_reason: str
    """As the endpoint gives it: `stop`, `length`, …; an error's code where it refused this image."""
    input_tokens: int | None
    """As the endpoint counts them; None where it does not."""
    output_tokens: int | None
    answered_by: str | None = None
    """The model that the endpoint says it is; None where it does not."""


class JudgeEndpoint:
    """A judge that can be asked. Several threads may ask at once."""

    def __init__(self, config: JudgeEndpointConfig) -> None:
        """Raises UserError where the address or the key is missing."""
        if config.url is None:
            raise UserError(
                "no judge to ask: give judge.url, the address of an OpenAI-compatible endpoint (docs/evaluation.md)"
            )
        self.config = config
        self.address = config.url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._key = _key(config.key_variable)
        self._stopped = threading.Event()
        self._client = httpx.Client(
            timeout=config.timeout_s,
            verify=ssl.create_default_context(),  # the certificates of this machine, which may know one of the user's own
            follow_redirects=False,  # the key goes to the given address alone
            limits=httpx.Limits(max_connections=None),
            headers={"Accept-Encoding": "identity"},
        )

    def ask(self, body: Mapping[str, Any]) -> Answer:
        """The answer to one request. Raises UserError where the endpoint refuses, or stays out after all tries.

        `body` holds model, messages and what else the request has, as OpenAI's chat completions take it.
        """
        data = json.dumps(body).encode()
        if self._stopped.is_set():
            raise UserError(f"the judge at {self.address} is not asked any more")
        pause_s = 1.0
        for tries_left in reversed(range(self.config.outage_tries)):
            try:
                return self._answer(self._post(data))
            except _Outage as outage:
                wait_s = pause_s if outage.retry_after_s is None else outage.retry_after_s
                if not tries_left or wait_s > _LONGEST_WAIT_S or self._stopped.wait(wait_s):
                    asked_to_wait = f" and asks to wait {wait_s:.0f} s" if wait_s > _LONGEST_WAIT_S else ""
                    raise UserError(
                        f"the judge at {self.address} does not answer{asked_to_wait} ({outage}); "
                        "the same command resumes where this one ended"
                    ) from None
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        raise AssertionError("the last try returns or raises")

    def stop(self) -> None:
        """Asks nothing more, and ends the pauses of questions that are tried again."""
        self._stopped.set()

    def _post(self, data: bytes) -> bytes:
        """The bytes of a good answer, or of one that refuses this image. Raises _Outage, or UserError for what stays so."""
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self._key}"} if self._key else {})}
        try:
            with self._client.stream("POST", self.address, content=data, headers=headers) as response:
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
            raise _Outage(message, retry_after_s=_retry_after_s(response.headers))
        settings = "judge.url, judge.model, judge.body and judge.key_variable"
        raise UserError(f"the judge at {self.address} refuses ({message}): see {settings}")

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
            return Answer(
                text=self._hidden(text if isinstance(text, str) else json.dumps(text)),
                finish_reason=self._hidden(str(choice.get("finish_reason"))),
                input_tokens=usage.get("prompt_tokens"),
                output_tokens=usage.get("completion_tokens"),
                answered_by=None if found.get("model") is None else self._hidden(str(found["model"])),
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise _Outage(f"no chat completion: {self._shown(data[:2000].decode(errors='replace'))}") from None

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, _HIDDEN) if self._key else text

    def _shown(self, text: str) -> str:
        """One short line, without the key."""
        return " ".join(self._hidden(text).split())[:300]


def image_url(pixels: npt.NDArray[np.uint8]) -> str:
    """An image, uint8 RGB (H, W, 3), as a data URL of a PNG that holds pixels alone. Deterministic."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


class KeptAnswers:
    """The answers that are there. Several threads may use it at once."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._lock = threading.Lock()
        self._verdicts: dict[str, str] = {row["key"]: row["answer"] for row in _verdict_rows(path)}

    def verdict(self, key: str) -> str | None:
        """The text of the answer to a question, if one is kept that is a verdict."""
        with self._lock:
            return self._verdicts.get(key)

    def keep(self, key: str, prompt: Mapping[str, Any], model: str, answer: Answer, *, is_verdict: bool) -> None:
        """Writes a line."""
        fields = dataclasses.asdict(answer)
        row = {"key": key, **prompt, "model": model, "answer": fields.pop("text"), "is_verdict": is_verdict, **fields}
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            if is_verdict:
                self._verdicts[key] = answer.text


def models_that_answered(path: Path) -> list[str]:
    """Those that endpoints named in the verdicts of a file, in order; none where there is no file."""
    return list(dict.fromkeys(row["answered_by"] for row in _verdict_rows(path) if row.get("answered_by")))


def question_key(body: Mapping[str, Any]) -> str:
    """Key of the whole request, image included: the same question has the same key, whatever address it is asked at."""
    return hashlib.blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=12).hexdigest()


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


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"the environment variable {variable}, which judge.key_variable names, is not set: export it")
    if not (key.isascii() and key.isprintable()):  # http.client would put the whole header into its complaint
        raise UserError(f"the environment variable {variable} holds no key: it has characters that no header can have")
    return key


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


def _verdict_rows(path: Path) -> list[dict[str, Any]]:
    return [row for row in open_rows(path) if row["is_verdict"]]
