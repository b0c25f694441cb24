"""Drawing engine of the image server: a queue of images and one thread that draws them, a step of all at a time.

Images are taken in the order of the queue as places get free, at any step; those of other sizes take their steps in turn.
Images with other adapters wait until those under way are done, since they share the network's weights. An image whose client is
gone is dropped before the next step.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch

from foundry.errors import NotFiniteOutput, Unavailable, UserError, one_line
from model.dit import Captions
from model.generation.not_finite import not_finite
from model.generation.pipeline import Pipeline
from model.generation.pixels import final_image
from model.generation.request import GeneratedImage, GenerationRequest
from model.sampling import LatentEdit, SamplingConfig
from model.serving.adapters import AdapterScales, NamedAdapters
from model.serving.batch import Batch, Kind, Row, new_row
from model.serving.metrics import ServerMetrics

logger = logging.getLogger(__name__)

_KEPT_CAPTIONS = 64
"""Prompts whose features are kept: one of T5-XXL takes 1 MB."""
_LONGEST_RETRY_S = 300
_FAILURES = 3
"""So many steps that fail one after the other say that the model is lost, not that a request was bad."""


class Busy(Exception):
    """The queue is full. `retry_after_s`: about how long it takes to draw what waits."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Stopping(Exception):
    """The server is about to stop, and draws nothing more."""


@dataclass(eq=False, kw_only=True)
class Job:
    """A request and its images. `answer` has them in order, or the error."""

    request: GenerationRequest
    adapters: AdapterScales
    answer: "Future[list[GeneratedImage]]" = field(default_factory=Future)
    images: dict[int, GeneratedImage] = field(default_factory=dict)
    edit: LatentEdit | None = None
    is_over: bool = False
    """Whether it is answered, or nobody waits for it."""


@dataclass(frozen=True)
class _Image:
    """One image of a job, which waits or is under way."""

    job: Job
    index: int


class Engine:
    """A pipeline that draws for many at once."""

    def __init__(
        self, pipeline: Pipeline, adapters: NamedAdapters, *, max_waiting: int, metrics: ServerMetrics | None = None
    ) -> None:
        self.pipeline = pipeline
        self.adapters = adapters
        self._failures: list[str] = []  # of the last steps, for reasons that no request and no lack of memory is
        self.num_drawn = 0
        """Number of images that were drawn."""
        self._max_waiting = max_waiting
        self.metrics = metrics or ServerMetrics()
        self.metrics.gauge("t2i_images_waiting", "Images that wait", lambda: len(self._waiting))
        self.metrics.gauge("t2i_images_active", "Images under way", lambda: len(self._active))
        self._waiting: deque[_Image] = deque()
        self._active: dict[_Image, Row] = {}
        self._batches: dict[Kind, Batch] = {}
        self._seconds = 0.0
        self._changed = threading.Condition()
        self._is_stopping = False
        self._captions = lru_cache(_KEPT_CAPTIONS)(self._encode)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it draws what it is given."""
        return self._thread.is_alive() and not self._is_stopping

    @property
    def failure(self) -> str:
        """Why the last three steps failed, all of them; empty: they did not."""
        return self._failures[-1] if len(self._failures) >= _FAILURES else ""

    def check(self, request: GenerationRequest, *, num_others: int = 0) -> None:
        """Raises UserError for what does not fit the network, Busy, Stopping. `num_others`: requests that come before it."""
        self.pipeline.check(request)
        if self._is_stopping:
            raise Stopping
        num_waiting = len(self._waiting) + num_others
        if num_waiting + request.num_images > self._max_waiting:
            raise Busy(
                f"{num_waiting} images wait already, and at most {self._max_waiting} may: ask again later",
                retry_after_s=self._drawing_s(num_waiting),
            )

    def submit(self, request: GenerationRequest, adapters: AdapterScales = ()) -> Job:
        """The job of a request. Raises as check."""
        job = Job(request=request, adapters=tuple(sorted(adapters)))
        with self._changed:
            self.check(request)
            self._waiting.extend(_Image(job, index) for index in range(request.num_images))
            self._changed.notify()
        return job

    def abandon(self, job: Job) -> None:
        """Nobody waits for the job any more: its images leave the queue now, and those under way before the next step."""
        with self._changed:
            job.is_over = True
            self._waiting = deque(image for image in self._waiting if image.job is not job)

    def drain(self) -> None:
        """Answers what waits with Stopping; what is under way is drawn, and nothing more."""
        with self._changed:
            self._is_stopping = True
            under_way = {image.job for image in self._active}
            dropped = {image.job for image in self._waiting} - under_way
            self._waiting = deque(image for image in self._waiting if image.job not in dropped)
            self._changed.notify()
        for job in dropped:
            self._fail(job, Stopping())

    def close(self) -> None:
        """Ends the thread once what is under way is drawn."""
        self.drain()
        self._thread.join()

    def _drawing_s(self, num_images: int) -> int:
        """Estimated seconds for this number of images."""
        each_s = self._seconds / self.num_drawn if self.num_drawn else 1.0  # unknown before the first
        return max(1, min(_LONGEST_RETRY_S, math.ceil(each_s * num_images)))

    def _run(self) -> None:
        while (fresh := self._next()) is not None:
            begun_s = time.monotonic()
            for image in fresh:
                self._guarded([image], self._begin, image)
            self._drop_abandoned()
            self._finish_done()
            for kind in list(dict.fromkeys(row.kind for row in self._active.values())):
                images = [image for image, row in self._active.items() if row.kind == kind]
                self._guarded(images, self._step, kind, images)
            self._drop_abandoned()
            self._finish_done()
            self._seconds += time.monotonic() - begun_s

    def _next(self) -> list[_Image] | None:
        """The images that begin now, once there is anything to do; None: nothing is left, and the engine stops."""
        with self._changed:
            while not (self._waiting or self._active):
                if self._is_stopping:
                    return None
                self._changed.wait()
            fresh: list[_Image] = []
            first = next(iter([*self._active, *self._waiting]))
            while (
                self._waiting
                and len(self._active) + len(fresh) < self.pipeline.runtime.batch_size
                and self._waiting[0].job.adapters == first.job.adapters
            ):
                fresh.append(self._waiting.popleft())
            return fresh

    def _begin(self, image: _Image) -> None:
        job, request = image.job, image.job.request
        if not self._active and self.adapters.add(job.adapters, self.pipeline.parts.transformer.get()):
            self._batches.clear()  # keys and values were computed with other weights
        assert request.prompts is not None
        captions = self._captions(request.prompts[0])
        negatives = self._captions(request.negative_prompt) if request.sampling.guided else None
        if request.image is not None and job.edit is None:
            job.edit = self.pipeline.edit(request)
        row = new_row(self.pipeline, request, image.index, captions=captions, negatives=negatives, edit=job.edit)
        with self._changed:
            self._active[image] = row

    def _encode(self, prompt: str) -> Captions:
        captions = self.pipeline.encode([prompt])
        if not bool(captions.tokens.isfinite().all()):
            runtime = self.pipeline.runtime
            dtype = runtime.text_encoder_dtype or runtime.dtype
            raise NotFiniteOutput(not_finite("the text encoder's output", dtype=dtype, other="another text encoder"))
        return captions.to(self.pipeline.runtime.device)

    def _step(self, kind: Kind, images: list[_Image]) -> None:
        begun_s = time.monotonic()
        self._batches.setdefault(kind, Batch(self.pipeline)).step([self._active[image] for image in images])
        self._failures.clear()
        self.metrics.steps.observe(len(images))
        self.metrics.step_seconds.inc(time.monotonic() - begun_s)

    def _finish_done(self) -> None:
        for image, row in [(image, row) for image, row in self._active.items() if row.denoising.is_done]:
            self._leave(image)  # before it is answered, so that metrics of an answered request are those of the others
            if not image.job.is_over:
                self._guarded([image], self._finish, image, row)

    def _finish(self, image: _Image, row: Row) -> None:
        job, request = image.job, image.job.request
        latents = row.denoising.latents
        if not bool(latents.isfinite().all()):
            dtype = self.pipeline.runtime.dtype
            raise NotFiniteOutput(not_finite("the network's output", dtype=dtype, other="another checkpoint"))
        assert request.prompts is not None
        job.images[image.index] = GeneratedImage(
            index=image.index,
            prompt=request.prompts[0],
            negative_prompt=request.negative_prompt,
            seed=request.image_seed(image.index),
            num_cut_tokens=self.pipeline.parts.text_encoder.get().count_cut_tokens(request.prompts)[0],
            image=final_image(self.pipeline.parts.vae.get().decode(latents), request, row.kind.size, "pil"),
            latents=latents[0].cpu(),
        )
        self.num_drawn += 1
        self.metrics.images.inc()
        if len(job.images) == request.num_images:
            job.is_over = True
            job.answer.set_result([job.images[index] for index in range(request.num_images)])

    def _drop_abandoned(self) -> None:
        for image in [image for image in self._active if image.job.is_over]:
            self._leave(image)

    def _leave(self, image: _Image) -> None:
        with self._changed:
            del self._active[image]
        kinds = {row.kind for row in self._active.values()}
        self._batches = {kind: batch for kind, batch in self._batches.items() if kind in kinds}

    def _guarded(self, images: Sequence[_Image], work: Callable[..., None], *arguments: Any) -> None:
        """Does the work; where it fails, the jobs of these images fail, and the engine draws on."""
        try:
            work(*arguments)
        except UserError as error:
            failure: Exception = error
        except torch.OutOfMemoryError as error:
            failure = Unavailable(f"out of memory ({one_line(error, limit=200)}): serve with a smaller batch_size")
            logger.exception("out of memory")
        except Exception as error:  # a model may raise anything; what it fails on must not stop the server
            failure = error
            self._failures.append(f"{type(error).__name__}: {one_line(error, limit=200)}")
            logger.exception("drawing failed")
        else:
            return
        for image in images:
            self._fail(image.job, failure)

    def _fail(self, job: Job, error: Exception) -> None:
        if not job.is_over:
            self.abandon(job)
            job.answer.set_exception(error)


def warm_up(pipeline: Pipeline, sampling: SamplingConfig) -> None:
    """Loads all parts and draws an image in one step, so that what is missing is found before the first request."""
    pipeline(GenerationRequest(prompts=("",), sampling=replace(sampling, num_inference_steps=1)))
