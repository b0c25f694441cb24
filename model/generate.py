"""Images from prompts: `python -m model.generate --checkpoint CHECKPOINT --prompt "a red owl" --out owl.png`.

One image goes to a .png, many to a folder, named by prompt and seed. Each PNG holds prompt, seed and settings; the same
command again draws only what is not there yet.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.command_line import CHOICE, ModelChoice, run_command
from foundry.errors import UserError
from foundry.hardware import AutoDtype
from model.formats.checkpoint import checkpoint_fingerprint, find_checkpoint
from model.generation.image_files import image_names, is_drawn, make_grid, open_image, save_png
from model.generation.pipeline_parts import RuntimeConfig
from model.generation.prompt_files import read_prompts
from model.generation.request import GenerationRequest
from model.sampling import SamplingConfig
from model.text_encoder import Quantisation

if TYPE_CHECKING:
    from PIL import Image

    from model.generation.pipeline import Pipeline

GRID = "grid.png"
_OWN = "a network of your own (a training's folder or a checkpoint)"


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of `python -m model.generate`."""

    out: str
    """A .png for one image or a grid, a folder for several images."""
    checkpoint: str = field(metadata={CHOICE: ModelChoice(real="FOLDER", what=_OWN, toy="only draws 64-pixel emoji scenes")})
    """Folder with transformer/ and pipeline.json, a training's folder (its newest checkpoint), or `mini`: the shipped toy."""
    prompt: str | None = None
    """What to draw."""
    prompts_file: str | None = None
    """Prompts in place of one: a line each (.txt), an object each (.jsonl) or a row each (.csv)."""
    prompt_column: str = "prompt"
    """Where the prompt is in a .jsonl or .csv."""
    negative_prompt: str = ""
    """What to lead away from; empty: the null caption."""
    num_images_per_prompt: int = 1
    """Images of each prompt, with the seeds seed, seed + 1, …"""
    seed: int = 0
    """Seed of the first image of each prompt."""
    num_inference_steps: int = 20
    """Steps of the sampler."""
    guidance_scale: float = 4.5
    """Weight of the prompt against the negative prompt; 1 or less: no guidance, at half the work."""
    sampler: str = "dpm-solver++"
    """dpm-solver++, ddim (diffusion only) or euler (rectified flow only)."""
    eta: float = 0.0
    """Of ddim: 0 draws no noise on the way, 1 as much as the forward process."""
    height: int | None = None
    """In pixels; default: the checkpoint's resolution."""
    width: int | None = None
    """In pixels; default: the checkpoint's resolution."""
    resolution_binning: bool = True
    """Draw at the nearest size that PixArt was trained on, then scale and crop."""
    grid: bool = False
    """All images in one too: grid.png in the folder, or --out itself where that is a .png. A row for each prompt."""
    scale: int = 0
    """Whole factor by which the grid enlarges its images, without smoothing; 0: until a side has 256 pixels."""
    batch_size: int = 4
    """Images that are drawn together; changes nothing else."""
    device: str = "auto"
    """cuda, cpu, …; auto: cuda where there is one."""
    dtype: AutoDtype = "auto"
    """Number format that everything computes in; auto: bfloat16 where the hardware has it, else float32."""
    staged: bool = False
    """Text encoder, network and VAE in memory one after the other: XL at 1024 px in 8 GB, with an 8-bit text encoder."""
    tiled_vae: bool = False
    """Decode in tiles: little memory at any size."""
    quantisation: Quantisation = "none"
    """8-bit text encoder through bitsandbytes or torchao."""
    text_encoder_device: str | None = None
    """cpu: the text encoder stays off the GPU."""
    text_encoder: str | None = None
    """Where the checkpoint's text encoder is, if not where pipeline.json says."""
    vae: str | None = None
    """Where the checkpoint's VAE is, if not where pipeline.json says."""

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.prompts_file is None):
            raise ValueError("expected either --prompt or --prompts_file" + (", found both" if self.prompt is not None else ""))
        if self.scale < 0:
            raise ValueError(f"scale must be 0 or more, found {self.scale}")
        self.sampling()
        self.runtime()

    def sampling(self) -> SamplingConfig:
        """Sampler, steps, guidance."""
        return SamplingConfig(
            sampler=self.sampler,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            eta=self.eta,
        )

    def runtime(self) -> RuntimeConfig:
        """Where and how it runs."""
        return RuntimeConfig(
            device=self.device,
            dtype=self.dtype,
            staged=self.staged,
            text_encoder_device=self.text_encoder_device,
            quantisation=self.quantisation,
            tiled_vae=self.tiled_vae,
            batch_size=self.batch_size,
        )

    def request(self) -> GenerationRequest:
        """What to draw. Raises UserError for a file of prompts that holds none."""
        prompts = (
            (self.prompt,) if self.prompt is not None else read_prompts(self.prompts_file or "", column=self.prompt_column)
        )
        return GenerationRequest(
            prompts=prompts,
            negative_prompt=self.negative_prompt,
            num_images_per_prompt=self.num_images_per_prompt,
            seed=self.seed,
            height=self.height,
            width=self.width,
            resolution_binning=self.resolution_binning,
            sampling=self.sampling(),
        )


def main(config: GenerateConfig) -> int:
    """Draws what is not there yet; returns 0."""
    import torch

    from model.generation.pipeline import open_pipeline

    request, runtime = config.request(), config.runtime().resolved()
    paths = _image_paths(Path(config.out), request, grid=config.grid)
    values = _image_values(config, request, runtime)
    print(f"{config.checkpoint} on {runtime.device} in {runtime.dtype}", flush=True)
    pipeline = open_pipeline(config.checkpoint, runtime=runtime, text_encoder=config.text_encoder, vae=config.vae)
    try:
        images = _draw(pipeline, request, paths, values)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of memory ({str(error).splitlines()[0]}): try --batch_size 1 --staged --tiled_vae --quantisation bitsandbytes"
        ) from error
    if config.grid:
        images = images if paths is None else [open_image(path) for path in paths]
        path = Path(config.out) if paths is None else Path(config.out) / GRID
        columns = config.num_images_per_prompt if len(request.prompts or ()) > 1 else None
        save_png(make_grid(images, columns=columns, scale=config.scale), path, {"images": list(values)})
    return 0


def _image_paths(out: Path, request: GenerationRequest, *, grid: bool) -> list[Path] | None:
    """Where each image goes; None where only their grid is kept. Raises UserError where they have no place."""
    if out.suffix.lower() == ".png":
        if out.is_dir():
            raise UserError(f"--out {out} is a folder: give another name to a .png, or a name without .png to a folder")
        if request.num_images == 1 and not grid:
            return [out]
        if grid:
            return None
        raise UserError(f"--out {out} has place for one image, not for {request.num_images}: give a folder, or --grid")
    if out.suffix.lower() in (".jpg", ".jpeg", ".webp") or out.is_file():
        raise UserError(f"--out {out}: expected a .png or a folder")
    prompts, seeds = _prompts_and_seeds(request)
    return [out / name for name in image_names(prompts, seeds)]


def _image_values(config: GenerateConfig, request: GenerationRequest, runtime: RuntimeConfig) -> list[dict[str, Any]]:
    """What each image is drawn from, for its PNG: whoever has this can draw it again."""
    root = find_checkpoint(config.checkpoint)
    settings = {
        "checkpoint": str(config.checkpoint),
        "checkpoint_fingerprint": checkpoint_fingerprint(root),
        "sampler": config.sampler,
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.guidance_scale,
        "eta": config.eta,
        "height": config.height,
        "width": config.width,
        "resolution_binning": config.resolution_binning,
        "dtype": runtime.dtype,
        "quantisation": config.quantisation,
        "tiled_vae": config.tiled_vae,
    }
    prompts, seeds = _prompts_and_seeds(request)
    return [
        {"prompt": prompt, "negative_prompt": config.negative_prompt, "seed": seed, "settings": settings}
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


def _prompts_and_seeds(request: GenerationRequest) -> tuple[list[str], list[int]]:
    """Of each image, in order."""
    assert request.prompts is not None
    prompts = [request.prompts[request.caption_index(image)] for image in range(request.num_images)]
    return prompts, [request.image_seed(image) for image in range(request.num_images)]


def _draw(
    pipeline: "Pipeline", request: GenerationRequest, paths: list[Path] | None, values: list[dict[str, Any]]
) -> "list[Image.Image]":
    """Draws the images that are not there yet, writes them where there are paths, and says so. Returns those for the grid."""
    from PIL import Image

    places = range(request.num_images)
    missing = [place for place in places if paths is None or not is_drawn(paths[place], values[place])]
    start_s = time.monotonic()
    unsaved: list[Image.Image] = []
    cut: set[str] = set()
    for place, drawn in zip(missing, pipeline.stream(request, images=missing, progress=bool(missing)), strict=True):
        assert isinstance(drawn.image, Image.Image)
        cut |= {drawn.prompt or ""} if drawn.num_cut_tokens else set()
        if paths is None:
            unsaved.append(drawn.image)
        else:
            save_png(drawn.image, paths[place], values[place])
    seconds = (time.monotonic() - start_s) / max(1, len(missing))
    images = f"{len(missing)} image{'' if len(missing) == 1 else 's'}"
    print(f"{images} drawn, {seconds:.1f} s each, {len(places) - len(missing)} were there already")
    if cut:
        limit = pipeline.transformer_config.max_caption_tokens
        print(f"{len(cut)} prompts have more than {limit} tokens, of which the rest is not read; the first: {min(cut)[:80]}")
    return unsaved if paths is None else []


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            GenerateConfig,
            main,
            prog="python -m model.generate",
            example='python -m model.generate --checkpoint runs/aesthetic --prompt "a red owl" --out owl.png',
        )
    )
