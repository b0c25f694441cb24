"""Painter: draws one prompt with several checkpoints at the same seed; the pipelines that were used last stay loaded."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from foundry.errors import UserError
from model.lora.settings import LoraChoice
from model.rewriting.config import OF_CHECKPOINT, RewriteConfig
from studio.loading import LOADING

if TYPE_CHECKING:
    from model.generation.pipeline import Pipeline
    from model.generation.request import GenerationRequest
    from model.rewriting.rewriting import PromptRewriter, Rewriting

_LOADED = 2
_LOOK_S = 0.2
_TIMES_AREA = 2
"""Largest area of an image, in areas of the checkpoint's resolution; the default of model.serve too."""


class StoppedError(UserError):
    """A drawing that a person stopped, or the end of the studio."""


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """Settings of an image; what is None is the checkpoint's own default."""

    prompt: str
    """Prompt as a person wrote it."""
    negative_prompt: str = ""
    """Negative prompt; empty: the null caption."""
    seed: int = 0
    """Random seed of the image."""
    num_inference_steps: int | None = None
    """Number of steps."""
    guidance_scale: float | None = None
    """Weight of the prompt against the negative prompt."""
    height: int | None = None
    """Height in pixels."""
    width: int | None = None
    """Width in pixels."""
    lora: str = ""
    """Adapter to add, one of those that are open; empty: none."""
    lora_scale: float = 1.0
    """Factor of the adapter's change."""
    rewrites: bool = False
    """Whether the prompt is rewritten first."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """An image, what it was drawn from, and the prompt as the network read it."""

    checkpoint: str
    settings: DrawSettings
    drawn_prompt: str
    remark: str
    """Line about the rewriting and about what the text encoder did not read; empty where there is nothing to say."""
    image: Image.Image
    values: dict[str, Any]
    """Values for the PNG: whoever has them can draw it again."""


class Painter:
    """Draws with the checkpoints and adapters that the studio was opened with, and no others; one image at a time."""

    def __init__(
        self,
        checkpoints: Sequence[str],
        *,
        loras: Sequence[str] = (),
        rewrite: RewriteConfig | None = None,
        device: str = "auto",
    ) -> None:
        self.checkpoints = tuple(checkpoints)
        self.loras = tuple(loras)
        self._rewrite = rewrite or RewriteConfig()
        self._device = device
        self._lock = threading.Lock()
        self._closes = threading.Event()
        self._pipelines: OrderedDict[tuple[str, str, float], Pipeline] = OrderedDict()
        self._rewriters: dict[str, PromptRewriter] = {}

    def close(self) -> None:
        """Stops the drawing in hand after its step, and those that wait."""
        self._closes.set()

    def draw(self, checkpoint: str, settings: DrawSettings, *, stop: threading.Event | None = None) -> Drawn:
        """One image, once the images that others wait for are drawn.

        Raises UserError for a checkpoint or an adapter that is not open, for what the network cannot draw, and for more than
        twice the area that it was trained for; StoppedError once `stop` is set, after the step in hand.
        """
        from model.generation.drawing import image_values
        from model.generation.request import GenerationRequest
        from model.sampling import SamplingConfig

        self._check(checkpoint, settings)

        def check_stop(*_step: object) -> None:
            if self._closes.is_set() or (stop is not None and stop.is_set()):
                raise StoppedError("stopped")

        with self._turn(check_stop):
            pipeline = self._pipeline(checkpoint, settings)
            rewriting = self._rewriting(checkpoint, settings)
            try:
                sampling = SamplingConfig(
                    num_inference_steps=settings.num_inference_steps, guidance_scale=settings.guidance_scale
                )
                request = GenerationRequest(
                    prompts=(settings.prompt,),
                    negative_prompt=settings.negative_prompt,
                    seed=settings.seed,
                    height=settings.height,
                    width=settings.width,
                    sampling=sampling,
                )
            except ValueError as error:
                raise UserError(str(error)) from None
            _check_area(pipeline, request)
            lora = _loras(settings)
            values = image_values(checkpoint, request, pipeline.runtime, rewriting=rewriting, lora=lora)[0]
            if rewriting is not None:
                request = replace(request, prompts=rewriting.drawn(request.prompts or ()))
            check_stop()
            (found,) = pipeline(request, on_step=check_stop)
        image = found.image
        assert isinstance(image, Image.Image), "the pipeline was asked for Pillow's images"
        prompt = (request.prompts or ("",))[0]
        remark = _remark(settings, rewriting, num_cut=found.num_cut_tokens)
        return Drawn(checkpoint=checkpoint, settings=settings, drawn_prompt=prompt, remark=remark, image=image, values=values)

    @contextmanager
    def _turn(self, check_stop: Callable[[], None]) -> Iterator[None]:
        """Waits for the images of others, unless it is stopped meanwhile."""
        while not self._lock.acquire(timeout=_LOOK_S):
            check_stop()
        try:
            check_stop()
            yield
        finally:
            self._lock.release()

    def _check(self, checkpoint: str, settings: DrawSettings) -> None:
        if checkpoint not in self.checkpoints:
            raise UserError(f"the checkpoint {checkpoint or '(none)'} is not open: choose one of {', '.join(self.checkpoints)}")
        if settings.lora and settings.lora not in self.loras:
            raise UserError(f"the LoRA {settings.lora} is not open: name it when you start the studio", setting="lora")
        if not settings.prompt.strip():
            raise UserError("expected a prompt, such as: a red owl on a yellow background")

    def _pipeline(self, checkpoint: str, settings: DrawSettings) -> "Pipeline":
        asked = (checkpoint, settings.lora, settings.lora_scale if settings.lora else 1.0)
        if asked not in self._pipelines:
            with LOADING:
                from model.generation.pipeline import open_pipeline
                from model.generation.pipeline_parts import RuntimeConfig

                opened = open_pipeline(checkpoint, runtime=RuntimeConfig(device=self._device), lora=_loras(settings))
            while len(self._pipelines) >= _LOADED:
                self._pipelines.popitem(last=False)
            self._pipelines[asked] = opened
        self._pipelines.move_to_end(asked)
        return self._pipelines[asked]

    def _rewriting(self, checkpoint: str, settings: DrawSettings) -> "Rewriting | None":
        if not settings.rewrites:
            return None
        if checkpoint not in self._rewriters:
            with LOADING:
                from model.rewriting.rewriting import open_prompt_rewriter

                config = replace(self._rewrite, model=self._rewrite.model or OF_CHECKPOINT)
                device = "cpu" if self._device == "auto" else self._device
                self._rewriters[checkpoint] = open_prompt_rewriter(config, checkpoint=checkpoint, device=device)
        return self._rewriters[checkpoint].rewrite([settings.prompt], cache=self._rewrite.cache)


def _check_area(pipeline: "Pipeline", request: "GenerationRequest") -> None:
    size, side = pipeline.check(request), pipeline.config.resolution
    most = _TIMES_AREA * side**2
    if size.height * size.width > most:
        raise UserError(
            f"expected at most {most:,} pixels, twice the {side} x {side} px that the checkpoint was trained for, found "
            f"{size.width} x {size.height} px: give a smaller width or height"
        )


def _loras(settings: DrawSettings) -> tuple[LoraChoice, ...]:
    return (LoraChoice(settings.lora, settings.lora_scale),) if settings.lora else ()


def _remark(settings: DrawSettings, rewriting: "Rewriting | None", *, num_cut: int) -> str:
    said = []
    if rewriting is not None:
        one = rewriting.prompts[settings.prompt]
        said.append(f"drawn as written: {one.problem}" if one.problem else f"rewritten by {rewriting.rewriter}")
    if num_cut:
        said.append(f"the last {num_cut} tokens of the prompt were not read")
    return "; ".join(said)
