"""Drawing of a request into files: paths and recorded values of its images, and only those that are not there yet."""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from foundry.errors import UserError
from foundry.hardware import Dtype
from foundry.wording import counted
from model.formats.checkpoint import checkpoint_fingerprint, find_checkpoint, read_pipeline_config
from model.generation.image_files import ImageFile, image_names, is_drawn, save_png
from model.generation.pipeline_parts import RuntimeConfig, few_steps_of, open_control_choice, open_loras
from model.generation.request import GeneratedImage, GenerationRequest
from model.rewriting.rewriting import Rewriting

REWRITTEN_PROMPT = "rewritten_prompt"
"""Text entry of a PNG: the prompt that the image was drawn of, where that is not its `prompt`."""

if TYPE_CHECKING:
    from PIL import Image

    from model.control.settings import ControlChoice
    from model.generation.pipeline import Pipeline
    from model.lora.settings import LoraChoice


@dataclass(frozen=True, kw_only=True)
class DrawingResult:
    """Outcome of drawing a request."""

    num_drawn: int
    """Images drawn now."""
    num_present: int
    """Images that were there already."""
    seconds_each: float
    """Mean time of an image drawn now, in seconds."""
    cut_prompts: frozenset[str]
    """Prompts with more tokens than the text encoder reads."""
    unsaved: "list[Image.Image]"
    """Images drawn now that are kept in no file."""

    def cut_line(self, max_caption_tokens: int) -> str:
        """A line about prompts that the text encoder does not read to their end; empty: it reads all."""
        if not self.cut_prompts:
            return ""
        number = len(self.cut_prompts)
        return (
            f"{counted(number, 'prompt')} {'has' if number == 1 else 'have'} more than {max_caption_tokens} tokens, of which "
            f"the rest is not read; the first: {min(self.cut_prompts)[:80]}"
        )


def image_paths(out: Path, request: GenerationRequest, *, grid: bool) -> list[Path] | None:
    """Path of each image; None where only their grid is kept. Raises UserError where `out` cannot hold them."""
    if out.suffix.lower() == ".png":
        if out.is_dir():
            raise UserError(
                f"{out} is a folder: give another name to a .png, or a name without .png to a folder", setting="out"
            )
        if request.num_images == 1 and not grid:
            return [out]
        if grid:
            return None
        raise UserError(
            f"{out} has place for one image, not for {request.num_images}: give a folder, or draw a grid", setting="out"
        )
    if out.suffix.lower() in (".jpg", ".jpeg", ".webp") or out.is_file():
        raise UserError(f"{out}: expected a .png or a folder", setting="out")
    prompts, seeds = _prompts_and_seeds(request)
    return [out / name for name in image_names(prompts, seeds)]


def image_values(
    checkpoint: str,
    request: GenerationRequest,
    runtime: RuntimeConfig,
    *,
    rewriting: Rewriting | None = None,
    lora: "Sequence[LoraChoice]" = (),
    control: "ControlChoice | None" = None,
) -> list[dict[str, Any]]:
    """Values that each image is drawn from, for its PNG: whoever has them can draw it again. `runtime` is resolved.

    `lora` is added to the checkpoint's network, `control` put into it. `rewriting` holds the prompts of the
    request as they are drawn; None: as they are written.
    """
    root = find_checkpoint(checkpoint)
    adapters = open_loras(lora, root)
    sampling = request.sampling.resolved(few_steps_of(adapters) or read_pipeline_config(root).few_steps)
    request = replace(request, sampling=sampling)
    settings = drawing_settings(request, runtime, checkpoint=checkpoint, fingerprint=checkpoint_fingerprint(root))
    if lora:
        from model.formats.adapters import adapter_records

        settings["lora"] = adapter_records(adapters)
    if (opened := open_control_choice(control, root)) is not None and control is not None:
        from model.formats.controls import control_record

        settings["control"] = control_record(control, opened[0])
    if rewriting is not None:
        settings |= {"rewriter": rewriting.rewriter, "rewriter_identity": rewriting.identity}
    prompts, seeds = _prompts_and_seeds(request)
    return [
        {"prompt": prompt, "negative_prompt": request.negative_prompt, "seed": seed, "settings": settings}
        | rewritten_value(prompt, rewriting)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


def drawing_settings(
    request: GenerationRequest, runtime: RuntimeConfig, *, checkpoint: str, fingerprint: str
) -> dict[str, Any]:
    """What all images of a request are drawn with, as their files record it. `fingerprint` is the checkpoint's."""
    sampling = request.sampling
    return {
        "checkpoint": checkpoint,
        "checkpoint_fingerprint": fingerprint,
        "sampler": sampling.sampler,
        "num_inference_steps": sampling.num_inference_steps,
        "guidance_scale": sampling.guidance_scale,
        "eta": sampling.eta,
        **{key: value for key, value in sampling.record().items() if key in ("shift", "guidance_by")},
        "height": request.height,
        "width": request.width,
        "resolution_binning": request.resolution_binning,
        "dtype": runtime.dtype,
        "quantisation": runtime.quantisation,
        "tiled_vae": runtime.tiled_vae,
        **({} if runtime.weights == "full" else {"weights": runtime.weights}),
        **_edit_values(request),
    }


def _edit_values(request: GenerationRequest) -> dict[str, Any]:
    """What is recorded of an image to edit and of a control image; nothing where there is none."""
    control: dict[str, Any] = {}
    if request.control_image is not None:
        control = {"control_image": _digest(request.control_image), "compute_edges": request.compute_edges}
    if request.image is None:
        return control
    mask = {} if request.mask_image is None else {"mask_image": _digest(request.mask_image), "paste_kept": request.paste_kept}
    return {"image": _digest(request.image), "strength": request.strength, **mask, **control}


def _digest(image: "Image.Image") -> str:
    """Hash of an image's pixels."""
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()[:16]


def rewritten_value(prompt: str, rewriting: Rewriting | None) -> dict[str, str]:
    """What the PNG of a prompt that was rewritten records besides; nothing where it is drawn as written."""
    drawn = prompt if rewriting is None else rewriting.prompts[prompt].drawn
    return {} if drawn == prompt else {REWRITTEN_PROMPT: drawn}


def begun_dtype(paths: Sequence[Path] | None) -> Dtype | None:
    """The number format of the first image that is there already; None where none tells."""
    from PIL import Image

    for path in paths or ():
        with contextlib.suppress(OSError, SyntaxError, ValueError, KeyError, AttributeError), Image.open(path) as image:
            image.load()  # the text of a PNG may follow its pixels
            found = json.loads(image.text["settings"])["dtype"]  # type: ignore[attr-defined]
            if found in get_args(Dtype):
                return found  # type: ignore[no-any-return]
    return None


def missing_files(files: Mapping[int, ImageFile]) -> dict[int, ImageFile]:
    """Those that are missing, cut off, or drawn from other values."""
    return {index: file for index, file in files.items() if not is_drawn(file.path, file.values)}


def draw_into(
    pipeline: "Pipeline", request: GenerationRequest, files: Mapping[int, ImageFile | None], *, progress: bool = False
) -> "Iterator[tuple[GeneratedImage, Image.Image]]":
    """Draws the images of these indices one after the other; each is in its file, where it has one, before it is returned.

    Raises NotFiniteOutput, once all others are drawn, for images that are NaN or infinite.
    """
    from PIL import Image

    for drawn in pipeline.stream(request, images=list(files), progress=progress):
        file = files[drawn.index]
        assert isinstance(drawn.image, Image.Image)
        if file is not None:
            save_png(drawn.image, file.path, file.values)
        yield drawn, drawn.image


def draw(
    pipeline: "Pipeline", request: GenerationRequest, paths: Sequence[Path] | None, values: Sequence[Mapping[str, Any]]
) -> DrawingResult:
    """Draws the images that are not there yet and writes each to its path, where there are paths.

    Raises UserError, with the options that save memory, where the device runs out of it.
    """
    import torch

    try:
        return _draw_missing(pipeline, request, paths, values)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of memory ({str(error).splitlines()[0]}): try batch_size 1, staged, tiled_vae and quantisation bitsandbytes"
        ) from error


def _draw_missing(
    pipeline: "Pipeline", request: GenerationRequest, paths: Sequence[Path] | None, values: Sequence[Mapping[str, Any]]
) -> DrawingResult:
    files: Mapping[int, ImageFile | None] = dict.fromkeys(range(request.num_images))
    if paths is not None:
        files = missing_files({index: ImageFile(*pair) for index, pair in enumerate(zip(paths, values, strict=True))})
    start_s = time.monotonic()
    unsaved: list[Image.Image] = []
    cut: set[str] = set()
    for drawn, image in draw_into(pipeline, request, files, progress=bool(files)):
        cut |= {drawn.prompt or ""} if drawn.num_cut_tokens else set()
        unsaved += [image] if paths is None else []
    return DrawingResult(
        num_drawn=len(files),
        num_present=request.num_images - len(files),
        seconds_each=(time.monotonic() - start_s) / max(1, len(files)),
        cut_prompts=frozenset(cut),
        unsaved=unsaved,
    )


def _prompts_and_seeds(request: GenerationRequest) -> tuple[list[str], list[int]]:
    """Prompt and seed of each image, in order."""
    assert request.prompts is not None
    prompts = [request.prompts[request.caption_index(image)] for image in range(request.num_images)]
    return prompts, [request.image_seed(image) for image in range(request.num_images)]
