"""OpenAI-compatible server of a pipeline: images from prompts, edits of images, models, health, metrics.

See docs/serving.md for its fields. PNGs carry prompt, seed and settings as those of `model.generate` do.
"""

import asyncio
import base64
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image

from foundry.errors import NotFiniteOutput, Unavailable, UserError, one_line
from foundry.http.server import BadRequest, failure, models_list, new_app, read_body, read_json
from model.formats.adapters import adapter_records
from model.generation.drawing import REWRITTEN_PROMPT, drawing_settings, rewritten_value
from model.generation.image_files import png_bytes
from model.generation.pixels import read_image, read_mask
from model.generation.request import GeneratedImage
from model.rewriting.rewriting import PromptRewriter, Rewriting
from model.serving.engine import Busy, Engine, Job, Stopping
from model.serving.forms import read_form
from model.serving.image_request import ImageOrder, RequestReader
from model.serving.metrics import CONTENT_TYPE, ServerMetrics

_GONE = 499
"""Status, in metrics alone, of a request whose client went away before the answer."""


@dataclass(frozen=True, kw_only=True)
class ServerRewriter:
    """Rewriter of the prompts of requests."""

    rewriter: PromptRewriter
    cache: str | None
    executor: Executor
    """Threads that it runs in: one, where it is a model of this process."""


class ImageServer:
    """What the endpoints share."""

    def __init__(
        self,
        engine: Engine,
        reader: RequestReader,
        *,
        fingerprint: str,
        rewriter: ServerRewriter | None = None,
    ) -> None:
        """`fingerprint` is the checkpoint's, for the images' files."""
        self.engine = engine
        self.reader = reader
        self.metrics = engine.metrics
        self._fingerprint = fingerprint
        self._rewriter = rewriter
        self._num_rewriting = 0
        self.metrics.gauge("t2i_prompts_rewriting", "Prompts that are rewritten, or wait for it", lambda: self._num_rewriting)

    async def generations(self, request: Request) -> Response:
        """Answers a request for images from a prompt."""
        body = await read_json(request, max_bytes=self.reader.limits.max_request_bytes)
        return await self._answer(request, self.reader.read(body))

    async def edits(self, request: Request) -> Response:
        """Answers a request for images from an image, a form as OpenAI's."""
        limits = self.reader.limits
        data = await read_body(request, max_bytes=limits.max_image_bytes)
        form = await asyncio.to_thread(read_form, request.headers.get("content-type", ""), data)
        try:
            image, mask = await asyncio.to_thread(self._images, form.files)
        except UserError as error:
            raise BadRequest(str(error), param=error.setting) from None
        return await self._answer(request, self.reader.read(form.fields, image=image, mask=mask))

    def _images(self, files: Mapping[str, bytes]) -> tuple[Image.Image, Image.Image | None]:
        most = self.reader.max_pixels
        mask = files.get("mask")
        return read_image(files["image"], max_pixels=most), None if mask is None else read_mask(mask, max_pixels=most)

    async def _answer(self, request: Request, order: ImageOrder) -> Response:
        begun_s = time.monotonic()
        written = (order.request.prompts or ("",))[0]
        rewriting = await self._rewriting(written, order)
        if rewriting is not None:
            order = replace(order, request=replace(order.request, prompts=rewriting.drawn([written])))
        with _refusals():
            job = self.engine.submit(order.request, order.adapters)
        try:
            drawn = await self._drawn(request, job)
        finally:
            if not job.answer.done():
                self.engine.abandon(job)
        if drawn is None:
            self.metrics.abandoned.inc()
            return Response(status_code=_GONE)
        data = await asyncio.to_thread(self._data, drawn, order, written, rewriting)
        self.metrics.seconds.observe(time.monotonic() - begun_s)
        return JSONResponse({"created": int(time.time()), "data": data, "output_format": "png"})

    async def _drawn(self, request: Request, job: Job) -> list[GeneratedImage] | None:
        """The images of a job; None where the client went away."""
        answer = asyncio.wrap_future(job.answer)
        gone = asyncio.ensure_future(_disconnected(request))
        both: tuple[asyncio.Future[Any], ...] = (answer, gone)
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not answer.done():
            return None
        try:
            return answer.result()
        except Stopping:
            raise _stopping() from None
        except NotFiniteOutput as error:
            raise BadRequest(str(error), status=422) from None
        except Unavailable as error:
            raise BadRequest(str(error), status=503, retry_after_s=5) from None
        except Exception as error:  # noqa: BLE001 - see Engine: a model may raise anything
            raise BadRequest(f"the model failed: {type(error).__name__}: {one_line(error, limit=300)}", status=500) from None

    async def _rewriting(self, prompt: str, order: ImageOrder) -> Rewriting | None:
        """The prompt as it is drawn; None where it is drawn as written."""
        if self._rewriter is None:
            if order.rewrite:
                raise BadRequest("rewrite: this server has no rewriter: leave it out", param="rewrite")
            return None
        if order.rewrite is False:
            return None
        with _refusals():
            self.engine.check(order.request, num_others=self._num_rewriting)  # so that no queue forms here
        one, loop = self._rewriter, asyncio.get_running_loop()
        self._num_rewriting += 1
        try:
            return await loop.run_in_executor(one.executor, lambda: one.rewriter.rewrite([prompt], cache=one.cache))
        except UserError as error:
            raise BadRequest(f"the prompt cannot be rewritten: {error}", status=503, retry_after_s=5) from None
        finally:
            self._num_rewriting -= 1

    def _data(
        self, drawn: list[GeneratedImage], order: ImageOrder, written: str, rewriting: Rewriting | None
    ) -> list[dict[str, Any]]:
        request, runtime = order.request, self.engine.pipeline.runtime
        settings = drawing_settings(request, runtime, checkpoint=self.reader.name, fingerprint=self._fingerprint)
        if order.adapters:
            settings["lora"] = adapter_records(self.engine.adapters.scaled(order.adapters))
        if rewriting is not None:
            settings |= {"rewriter": rewriting.rewriter, "rewriter_identity": rewriting.identity}
        revised = rewritten_value(written, rewriting)
        data = []
        for one in drawn:
            values = {"prompt": written, "negative_prompt": request.negative_prompt, "seed": one.seed, "settings": settings}
            assert isinstance(one.image, Image.Image)
            item = {"b64_json": base64.b64encode(png_bytes(one.image, values | revised)).decode(), "seed": one.seed}
            item |= {"revised_prompt": revised[REWRITTEN_PROMPT]} if revised else {}
            data.append(item | ({"num_cut_tokens": one.num_cut_tokens} if one.num_cut_tokens else {}))
        return data


def image_app(server: ImageServer, *, key: str | None = None) -> FastAPI:
    """The application. `key`, where there is one, must come as a bearer token."""
    engine, metrics, names = server.engine, server.engine.metrics, [server.reader.name, *server.reader.adapters]
    app = new_app(f"T2I Foundry: {server.reader.name}", key=key, on_shutdown=engine.close)

    @app.get("/health")
    async def health() -> Response:
        if not engine.is_running:
            return failure("the server is stopping", status=503)
        if engine.failure:
            return failure(f"the last steps failed: {engine.failure}", status=503)
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return models_list(names)

    @app.post("/v1/images/generations")
    async def generations(request: Request) -> Response:
        return await _counted(server.generations, request, metrics)

    @app.post("/v1/images/edits")
    async def edits(request: Request) -> Response:
        return await _counted(server.edits, request, metrics)

    return app


async def _counted(answer: Callable[[Request], Any], request: Request, metrics: ServerMetrics) -> Response:
    """The answer, its status counted."""
    try:
        response: Response = await answer(request)
    except Exception as error:
        metrics.requests.labels(str(error.status if isinstance(error, BadRequest) else 500)).inc()
        raise
    metrics.requests.labels(str(response.status_code)).inc()
    return response


@contextmanager
def _refusals() -> Iterator[None]:
    """Turns what the engine refuses into answers."""
    try:
        yield
    except Busy as busy:
        raise BadRequest(str(busy), status=429, retry_after_s=busy.retry_after_s) from None
    except Stopping:
        raise _stopping() from None
    except UserError as error:
        raise BadRequest(str(error), param="size" if error.setting == "image" else error.setting or None) from None


async def _disconnected(request: Request) -> None:
    """Returns when the client has gone. The body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _stopping() -> BadRequest:
    return BadRequest("the server is stopping: ask again, of another one or when it is back", status=503, retry_after_s=5)
