"""Images drawn from prompts in one call, by a checkpoint or by a pipeline that is open already."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from foundry.api.functions import checks_names, explained_extras
from foundry.errors import UserError
from foundry.hardware import set_up_threads
from foundry.reporting.lines import say
from foundry.wording import counted
from model.generation.pipeline import Pipeline, open_pipeline
from model.generation.pipeline_parts import RuntimeConfig
from model.generation.request import GenerationRequest
from model.lora.settings import parse_choices
from model.sampling import SamplingConfig

if TYPE_CHECKING:
    from PIL import Image

_EXTRA = "train"


@checks_names
def draw(
    prompts: str | Sequence[str],
    *,
    checkpoint: "str | os.PathLike[str] | Pipeline",
    negative_prompt: str = "",
    num_images_per_prompt: int = 1,
    seed: int = 0,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    lora: str | Sequence[str] = (),
    runtime: RuntimeConfig | None = None,
) -> "list[Image.Image]":
    """Draws images of prompts, those of the first prompt first; the k-th of a prompt has the seed `seed + k`.

    `checkpoint` is a folder, a training's folder (its newest checkpoint), `mini`, or what open_pipeline returned, which keeps
    the models in memory between calls. The options are those of `python -m model.generate`: without `num_inference_steps` and
    `guidance_scale`, 20 steps and 4.5, or those of a network of few steps; without a size in pixels, the checkpoint's. `lora`
    are adapters, each PATH or PATH:SCALE, and `runtime` says where and in which number format; both belong to a checkpoint,
    not to an open pipeline. An image depends on its prompt, seed and settings alone. For noise, captions or an image to edit,
    call the pipeline with a GenerationRequest. Raises UserError for settings that do not fit the network, if memory does not
    suffice, and for images that are NaN or infinite. Needs the extra `train`.

    Example:

        from model import draw
        draw("a large owl on the left, blue striped background", checkpoint="mini", num_images_per_prompt=4)
    """
    from model.generation import drawing

    asked = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    request = GenerationRequest(
        prompts=asked,
        negative_prompt=negative_prompt,
        num_images_per_prompt=num_images_per_prompt,
        seed=seed,
        height=height,
        width=width,
        sampling=SamplingConfig(num_inference_steps=num_inference_steps, guidance_scale=guidance_scale),
    )
    if empty := sum(not prompt.strip() for prompt in asked):
        say(f"warning: {empty} of {counted(len(asked), 'prompt')} without text: the network draws any subject")
    with explained_extras(_EXTRA):
        set_up_threads()
        pipeline = _opened(checkpoint, lora=[lora] if isinstance(lora, str) else lora, runtime=runtime)
        drawn = drawing.draw(pipeline, request, None, ())
    if line := drawn.cut_line(pipeline.transformer_config.max_caption_tokens):
        say(line)
    return drawn.unsaved


def _opened(checkpoint: "str | os.PathLike[str] | Pipeline", *, lora: Sequence[str], runtime: RuntimeConfig | None) -> Pipeline:
    if not isinstance(checkpoint, Pipeline):
        try:
            return open_pipeline(os.fspath(checkpoint), runtime=runtime, lora=parse_choices(lora))
        except UserError:
            raise
        except ValueError as error:  # adapters that are wrong, or named twice
            raise UserError(str(error), setting="lora") from None
    if lora or runtime is not None:
        raise UserError("lora and runtime belong to open_pipeline: the pipeline that is given is open already")
    return checkpoint
