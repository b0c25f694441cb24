"""The images that are evaluated: drawn by a checkpoint, as far as they are not there yet, or found in a folder."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foundry.errors import UserError
from foundry.hardware import AUTO, AutoDtype
from foundry.images.decoding import DecodeLimits, decode_image
from foundry.reporting.lines import say
from foundry.storage.folder import new_file
from foundry.units.rejection import ImageError
from model.formats.adapters import adapter_records, open_adapters
from model.formats.checkpoint import checkpoint_fingerprint, find_checkpoint, read_pipeline_config
from model.generation.drawing import REWRITTEN_PROMPT
from model.generation.image_files import image_names
from model.generation.pipeline_parts import RuntimeConfig, few_steps_of
from model.generation.request import GenerationRequest
from model.lora.adapter import ScaledAdapter
from model.lora.settings import parse_choices
from model.rewriting.rewriting import Rewriting
from trainer.evaluation.benchmark import Benchmark, DrawnPrompts, Prompt
from trainer.evaluation.config import EvaluateConfig
from trainer.evaluation.drawing import Drawing

IDENTITY = "evaluation.json"
PROMPTS = "prompts.jsonl"
IMAGES = "images"


@dataclass(frozen=True, kw_only=True)
class DrawnImage:
    """An image to be judged."""

    path: Path
    prompt: Prompt
    seed: int

    def pixels(self) -> npt.NDArray[np.uint8]:
        """uint8 RGB (H, W, 3). Raises UserError for a file that is no image."""
        try:
            return decode_image(self.path.read_bytes(), limits=DecodeLimits()).pixels
        except (OSError, ImageError) as error:
            raise UserError(f"{self.path} cannot be read as an image ({error}): draw it again") from error


def with_dtypes(config: EvaluateConfig) -> EvaluateConfig:
    """The settings with `auto` settled: the number formats that the evaluation in --out began with, else those of the hardware.

    Raises UserError for a device that is not there.
    """
    path = Path(config.out) / IDENTITY
    begun = {"judge_dtype": "float32", **json.loads(path.read_text(encoding="utf-8"))} if path.exists() else {}
    runtime, judge_dtype = config.runtime, config.judge_dtype
    if judge_dtype == AUTO:
        judge_dtype = begun.get("judge_dtype") or RuntimeConfig(device=config.judge_device).resolved().dtype
    if runtime.dtype == AUTO and config.checkpoint is not None:
        of_text = runtime.text_encoder_dtype or AUTO  # that of its device, which may be another one
        runtime = dataclasses.replace(
            runtime, dtype=begun.get("dtype") or _dtype_of_drawing(config), text_encoder_dtype=of_text
        )
    return dataclasses.replace(config, runtime=runtime, judge_dtype=judge_dtype)


def _dtype_of_drawing(config: EvaluateConfig) -> AutoDtype:
    if not config.num_workers:
        return config.runtime.resolved().dtype
    from trainer.evaluation.ray_drawing import dtype_of_drawers

    return dtype_of_drawers(config)


def drawing_settings(config: EvaluateConfig, *, rewriter: str | None = None) -> dict[str, Any] | None:
    """Settings that images are drawn with besides prompt and seed, as their files record them; None for a folder of images.

    `rewriter`: identity of the rewriter of the prompts, where there is one.
    """
    if config.checkpoint is None:
        return None
    root = find_checkpoint(config.checkpoint)
    adapters = open_adapters(parse_choices(config.lora), root)
    return {
        "checkpoint_fingerprint": checkpoint_fingerprint(root),
        **({"lora": _lora_records(adapters)} if config.lora else {}),
        "sampling": config.sampling.resolved(few_steps_of(adapters) or read_pipeline_config(root).few_steps).record(),
        "dtype": config.runtime.dtype,
        "quantisation": config.runtime.quantisation,
        **({} if config.runtime.weights == "full" else {"weights": config.runtime.weights}),
        **({"rewriter": rewriter} if rewriter else {}),
    }


def _lora_records(adapters: Sequence[ScaledAdapter]) -> list[dict[str, object]]:
    """The adapters that are added to the network, by what they are and not by where they lie."""
    return [{name: value for name, value in record.items() if name != "lora"} for record in adapter_records(adapters)]


def claim_folder(out: Path, config: EvaluateConfig, benchmark: Benchmark, settings: Mapping[str, Any] | None) -> None:
    """Writes what is evaluated here, with the prompts and their images' names. Raises UserError if something else is."""
    identity = _identity(config, benchmark, settings)
    path = out / IDENTITY
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if differing := [name for name, value in identity.items() if found.get(name) != value]:
            raise UserError(
                f"{out} holds another evaluation ({', '.join(differing)} differ): give another folder", setting="out"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds other files and no {IDENTITY}: give another folder", setting="out")
    seeds = _seeds(config, benchmark)
    lines = [json.dumps(dataclasses.asdict(one) | {"images": _names(one.text, seeds[one.text])}) for one in benchmark.prompts]
    _write(out / PROMPTS, "\n".join(lines))
    _write(path, json.dumps(identity | {"judge_dtype": benchmark.judge_dtype or config.judge_dtype}, indent=2))


def open_images(
    out: Path,
    config: EvaluateConfig,
    benchmark: Benchmark,
    settings: Mapping[str, Any] | None,
    *,
    rewriting: Rewriting | None = None,
) -> list[DrawnImage]:
    """All images, those of the first prompt first. Raises UserError for a checkpoint or images that are not there."""
    folder = Path(config.images) if config.images else out / IMAGES
    seeds = _seeds(config, benchmark)
    images = [
        DrawnImage(path=folder / name, prompt=prompt, seed=seed)
        for prompt in benchmark.prompts
        for seed, name in zip(seeds[prompt.text], _names(prompt.text, seeds[prompt.text]), strict=True)
    ]
    if settings is not None:
        request = GenerationRequest(
            prompts=tuple(seeds),
            num_images_per_prompt=benchmark.num_images_per_prompt,
            seeds=tuple(itertools.chain.from_iterable(seeds.values())),
            sampling=config.sampling,
        )
        paths = tuple(dict.fromkeys(image.path for image in images))
        _draw_missing(Drawing(config=config, request=request, paths=paths, settings=settings, rewriting=rewriting))
    elif missing := list(dict.fromkeys(image.path.name for image in images if not image.path.is_file())):
        raise UserError(
            f"{len(missing)} of {len({image.path for image in images})} images are not in {folder}, the first: {missing[0]}; "
            f"draw them from {out / PROMPTS}, which names them, each with its seed at the end"
        )
    return images


def drawn_prompts(drawn: Sequence[DrawnImage], rewriting: Rewriting | None, *, of_folder: bool) -> DrawnPrompts:
    """Prompts of which the images were drawn; for a folder of images, as far as their files say."""
    if rewriting is not None:
        used = {one.prompt: one.drawn for one in rewriting.prompts.values() if not one.problem}
        return DrawnPrompts(statement=f"prompts: {rewriting.summary()}", rewritten=used)
    if not of_folder:
        return DrawnPrompts()
    entries = {image.prompt.text: _entries(image.path) for image in drawn}
    found = {text: str(own[REWRITTEN_PROMPT]) for text, own in entries.items() if REWRITTEN_PROMPT in own}
    if not found and all("prompt" in own for own in entries.values()):
        return DrawnPrompts()
    said = f"{len(found)} of {len(entries)} rewritten" if found else "whether they were rewritten is not known"
    return DrawnPrompts(statement=f"prompts: {said}, as the files of the images say", rewritten=found)


def _entries(path: Path) -> Mapping[Any, Any]:
    """The text entries of a PNG, as `model.generate` and this command write them; of other files, theirs or none."""
    from PIL import Image

    with contextlib.suppress(OSError, SyntaxError, ValueError), Image.open(path) as image:
        return image.info
    return {}


def _seeds(config: EvaluateConfig, benchmark: Benchmark) -> dict[str, range]:
    """Seeds of the images of each text; prompts of the same text share them."""
    texts = dict.fromkeys(prompt.text for prompt in benchmark.prompts)
    number = benchmark.num_images_per_prompt
    step = number if benchmark.own_seeds else 0
    firsts = (config.seed + index * step for index in range(len(texts)))
    return {text: range(first, first + number) for text, first in zip(texts, firsts, strict=True)}


def _names(text: str, seeds: range) -> list[str]:
    return image_names([text] * len(seeds), seeds)


def _draw_missing(drawing: Drawing) -> None:
    """Draws what is not there, and says so. Raises UserError."""
    missing = drawing.missing(range(len(drawing.paths)))
    start_s = time.monotonic()
    if drawing.config.num_workers and missing:
        from trainer.evaluation.ray_drawing import draw_on_ray

        draw_on_ray(drawing, missing)
    else:
        drawing.draw(drawing.open_pipeline(), missing, progress=bool(missing))
    seconds = time.monotonic() - start_s
    say(f"{len(missing)} images drawn in {seconds:.0f} s, {len(drawing.paths) - len(missing)} were there already")


def _identity(config: EvaluateConfig, benchmark: Benchmark, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Identity of the evaluation, in plain JSON; without the judges, which summary.json names."""
    source: dict[str, Any] = {"images": str(config.images)}
    if settings is not None:
        source = {name: value for name, value in settings.items() if name != "checkpoint_fingerprint"}
        source["checkpoint"] = settings["checkpoint_fingerprint"]
    prompts = hashlib.sha256(json.dumps([dataclasses.asdict(prompt) for prompt in benchmark.prompts]).encode()).hexdigest()
    source = {"lora": None, "rewriter": None} | source
    wanted = {"num_images_per_prompt": benchmark.num_images_per_prompt, "seed": config.seed}
    identity: dict[str, Any] = json.loads(json.dumps({"benchmark": benchmark.name, **source, **wanted, "prompts": prompts}))
    return identity


def _write(path: Path, text: str) -> None:
    try:
        with new_file(path) as partial:
            partial.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): give another folder", setting="out") from error
