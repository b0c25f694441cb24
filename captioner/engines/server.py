"""OpenAI-compatible server of the transformers engine: chat completions about one image, for people without vLLM and for tests.

Requests that wait while the model works form the next batch. As with any engine, in float32 an answer does not depend on the
other requests of its batch. Images come as data URLs; the server fetches nothing.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from fastapi import FastAPI, Request

from captioner.engines.generation import NOT_FINITE, Generation, GenerationSettings
from captioner.engines.model_source import ModelSource, assumed_prompt
from captioner.engines.transformers_engine import TransformersEngine
from captioner.prompts import control_token
from foundry.errors import one_line
from foundry.http.server import (
    BadRequest,
    address_of,
    failure,
    listen,
    models_list,
    new_app,
    read_json,
    read_server_key,
    run_server,
)
from foundry.images.decoding import DecodeLimits, decode_image
from foundry.reporting.lines import say
from foundry.storage.locations import data_of, is_data_url
from foundry.units.rejection import ImageError

_FIELDS = {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "logprobs"}
_IGNORED = {"n": 1, "stream": False, "top_logprobs": 0, "user": None, "stop": None}
"""Fields that may be there with a value that changes nothing."""


_GREY, _WORDS = np.full((64, 64, 3), 128, np.uint8), "Describe this image."
"""Question that tests whether the model works."""


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """Limits of the server."""

    max_request_bytes: int = 32 << 20
    """Maximum size of a request, in bytes."""
    max_waiting: int = 256
    """Maximum number of requests that wait for the model; more get status 429."""
    max_new_tokens: int = 1024
    """Maximum number of tokens of an answer."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A request that was read: pixels (H, W, 3) uint8, the prompt, and how to decode."""

    pixels: np.ndarray
    prompt: str
    settings: GenerationSettings


@dataclass(eq=False)
class _Waiting:
    question: Question
    answer: "Future[Generation]" = field(default_factory=Future)


class Batcher:
    """Runs the engine in one thread, on batches of the requests that wait and share their settings."""

    def __init__(self, engine: TransformersEngine, *, max_waiting: int) -> None:
        self._engine = engine
        self._waiting: queue.Queue[_Waiting | None] = queue.Queue(max_waiting)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, question: Question) -> "Future[Generation]":
        """The answer to come. Raises BadRequest (429) where too many wait already."""
        waiting = _Waiting(question)
        try:
            self._waiting.put_nowait(waiting)
        except queue.Full:
            raise BadRequest("the server is busy: try again in a second", status=429, retry_after_s=1) from None
        return waiting.answer

    def close(self) -> None:
        """Ends the thread once what waits is answered."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        first = self._waiting.get()
        while first is not None:
            batch, following = self._batch(first)
            self._answer(batch)
            first = following or self._waiting.get()

    def _batch(self, first: _Waiting) -> tuple[list[_Waiting], _Waiting | None]:
        """The first request and those after it that share its settings, with the one after these, if it waits already."""
        batch = [first]
        while len(batch) < self._engine.batch_size:
            try:
                following = self._waiting.get_nowait()
            except queue.Empty:
                return batch, None
            if following is None:
                self._waiting.put(None)
                return batch, None
            if following.question.settings != first.question.settings:
                return batch, following
            batch.append(following)
        return batch, None

    def _answer(self, batch: list[_Waiting]) -> None:
        questions = [one.question for one in batch]
        self._engine.settings = questions[0].settings
        try:
            found = self._engine.caption(
                [one.pixels for one in questions], [one.prompt for one in questions], [""] * len(batch)
            )
        except Exception as error:  # noqa: BLE001 - a model may raise anything; the request that it fails on must not stop the server
            if len(batch) > 1:
                for one in batch:
                    self._answer([one])
            else:
                batch[0].answer.set_exception(self._cause(error))
            return
        for one, generation in zip(batch, found, strict=True):
            one.answer.set_result(generation)

    def _cause(self, error: Exception) -> Exception:
        """Cause of a failed request: BadRequest (422) if the model still works, so that the request is to blame."""
        try:
            self._engine.check(_GREY, _WORDS)
        except Exception:  # noqa: BLE001 - as above; the first error says why
            return error
        return BadRequest(f"the model fails on this image: {type(error).__name__}: {one_line(error, limit=300)}", status=422)


def caption_server(
    engine: TransformersEngine, *, name: str, limits: ServerLimits, image_side_px: int, key: str | None = None
) -> FastAPI:
    """The application. `name` is the model's; `key`, where there is one, must come as a bearer token."""
    defaults = engine.settings  # the batcher sets those of each request
    batcher = Batcher(engine, max_waiting=limits.max_waiting)
    app = new_app(f"T2I Foundry: {name}", key=key, on_shutdown=batcher.close)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return models_list([name])

    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> Any:
        body = await read_json(request, max_bytes=limits.max_request_bytes)
        question = await asyncio.to_thread(
            read_question, body, name=name, defaults=defaults, limits=limits, image_side_px=image_side_px
        )
        try:
            generation = await asyncio.wrap_future(batcher.submit(question))
        except BadRequest:
            raise
        except Exception as error:  # noqa: BLE001 - see Batcher._answer
            return failure(f"the model failed: {type(error).__name__}: {error}", status=500)
        return _completion(generation, name=name, with_logprobs=bool(body.get("logprobs")))

    return app


def serve(
    source: ModelSource,
    settings: GenerationSettings,
    *,
    limits: ServerLimits,
    host: str,
    port: int,
    key_variable: str | None,
    key_file: str | None = None,
) -> None:
    """Loads the model and serves it until the process is interrupted. Port 0 is a free one.

    Raises UserError for an address that is taken, or open to others without a key.
    """
    key = read_server_key(key_variable, key_file, host=host)
    if line := assumed_prompt(source.name, source.prompt_format):
        say(line)
    with listen(host, port) as listener:
        engine = TransformersEngine(source, settings, keep_logprobs=True)
        engine.check(np.full((source.image_side_px, source.image_side_px, 3), 128, np.uint8), _WORDS)
        app = caption_server(engine, name=source.name, limits=limits, image_side_px=source.image_side_px, key=key)
        dtype = str(engine.model.dtype).removeprefix("torch.")
        say(f"{source.name} in {dtype} on {engine.device}: {address_of(listener)}/v1")
        run_server(app, listener)


def read_question(
    body: Mapping[str, Any], *, name: str, defaults: GenerationSettings, limits: ServerLimits, image_side_px: int
) -> Question:
    """The question in the body of a request. Raises BadRequest."""
    if body.get("model") != name:
        raise BadRequest(f"there is no model {body.get('model')!r}: this server has {name}", status=404)
    for field_name, value in body.items():
        if field_name not in _FIELDS and (field_name not in _IGNORED or value not in (None, _IGNORED[field_name])):
            raise BadRequest(f"{field_name}={value!r} is not supported here")
    images, texts = _parts(body.get("messages"))
    if len(images) != 1 or not "".join(texts).strip():
        raise BadRequest(f"expected a user's message with one image and a text, found {len(images)} images")
    prompt = "\n".join(texts)
    if control := control_token(prompt):
        raise BadRequest(f"{control} is not allowed in a text: the server adds the image and the chat's own tokens")
    return Question(pixels=_pixels(images[0], image_side_px), prompt=prompt, settings=_settings(body, defaults, limits=limits))


def _settings(body: Mapping[str, Any], defaults: GenerationSettings, *, limits: ServerLimits) -> GenerationSettings:
    asked: dict[str, Any] = {
        "max_new_tokens": body.get("max_completion_tokens") or body.get("max_tokens") or defaults.max_new_tokens,
        "temperature": body.get("temperature"),
        "top_p": body.get("top_p"),
        "seed": body.get("seed"),
    }
    given = {name: value for name, value in asked.items() if value is not None}
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in given.values()):
        raise BadRequest("max_tokens, temperature, top_p and seed must be numbers")
    try:
        settings = replace(defaults, **given)
    except ValueError as error:
        raise BadRequest(str(error)) from None
    if settings.max_new_tokens > limits.max_new_tokens:
        raise BadRequest(f"max_tokens must be at most {limits.max_new_tokens}")
    return settings


def _parts(messages: Any) -> tuple[list[str], list[str]]:
    """URLs of the images and the texts of the messages, in order. Raises BadRequest for other roles and parts."""
    images: list[str] = []
    texts: list[str] = []
    try:
        for message in messages:
            if message["role"] != "user":
                raise BadRequest(f"messages of the role {message['role']} are not supported: put the text into the user's")
            content = message["content"]
            parts: Any = [{"type": "text", "text": content}] if isinstance(content, str) else content
            for part in parts:
                if part["type"] == "image_url":
                    images.append(str(part["image_url"]["url"]))
                elif part["type"] == "text":
                    texts.append(str(part["text"]))
                else:
                    raise BadRequest(f"parts of the type {part['type']} are not supported: text and image_url are")
    except (KeyError, TypeError) as error:
        raise BadRequest(f"messages are malformed: {type(error).__name__}: {error}") from None
    return images, texts


def _pixels(url: str, image_side_px: int) -> np.ndarray:
    if not is_data_url(url):
        raise BadRequest("images must be data URLs (data:image/png;base64,…): this server fetches nothing")
    try:
        return decode_image(data_of(url), limits=DecodeLimits(), target_side_px=image_side_px).pixels
    except (ImageError, ValueError, OSError) as error:
        raise BadRequest(f"the image cannot be read: {error}", status=422) from None


def _completion(generation: Generation, *, name: str, with_logprobs: bool) -> dict[str, Any]:
    """The answer as JSON. Raises BadRequest (422) where there is none, or the model computed NaN or infinity."""
    if generation.failure:
        raise BadRequest(generation.failure, status=422)
    if not generation.is_finite:
        raise BadRequest(f"the model computes NaN or infinity for this image: {NOT_FINITE}", status=422)
    logprobs = {"content": [{"token": "", "logprob": value, "top_logprobs": []} for value in generation.logprobs]}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": generation.text},
        "finish_reason": generation.finish_reason,
        "logprobs": logprobs if with_logprobs else None,
    }
    usage = {
        "prompt_tokens": generation.num_input_tokens,
        "completion_tokens": generation.num_tokens,
        "total_tokens": generation.num_input_tokens + generation.num_tokens,
    }
    return {"object": "chat.completion", "created": int(time.time()), "model": name, "choices": [choice], "usage": usage}
