"""Command that draws images: `python -m model.generate --checkpoint CHECKPOINT --prompt "a red owl" --out owl.png`.

One image goes to a .png, many to a folder, named by prompt and seed. Each PNG holds prompt, seed and settings; the same
command again only draws the missing images.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.command_line import UserError, run_command
from foundry.hardware import AUTO, AutoDtype
from foundry.reporting.lines import say
from foundry.wording import CHOICE, ModelChoice
from model.control.settings import ControlChoice
from model.encoders.text_encoder import Quantisation
from model.formats.checkpoint import find_checkpoint
from model.generation.drawing import DrawingResult, begun_dtype, draw, image_paths, image_values
from model.generation.image_files import make_grid, open_image, save_png
from model.generation.pipeline_parts import RuntimeConfig, Weights
from model.generation.prompt_files import read_prompts
from model.generation.request import GenerationRequest
from model.lora.settings import LoraChoice, parse_choices
from model.rewriting.config import RewriteConfig
from model.sampling import GuidanceBy, SamplingConfig

if TYPE_CHECKING:
    from PIL import Image

    from model.rewriting.rewriting import Rewriting

GRID = "grid.png"
_OWN = "your own network (a training's folder or a checkpoint)"


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of `python -m model.generate`."""

    out: str
    """Path of the images: a .png for one image or a grid, a folder for several images."""
    checkpoint: str = field(metadata={CHOICE: ModelChoice(real="FOLDER", what=_OWN, toy="only draws 64-pixel emoji scenes")})
    """Folder with transformer/ and pipeline.json, a training's folder (its newest checkpoint), or the shipped toy: `mini`, or
    `mini-few-steps`, which draws in 4 steps."""
    lora: tuple[str, ...] = ()
    """LoRA adapters to add to the network, each PATH or PATH:SCALE: runs or checkpoints of a LoRA training, .safetensors files,
    folders written by peft."""
    control: str | None = None
    """Control to put into the network, PATH or PATH:SCALE: the run or checkpoint of a control training, its .safetensors file,
    or a folder of diffusers."""
    control_image: str | None = None
    """Control image, a file, which the images follow: an edge map, white on black; scaled and cropped to the images' size."""
    compute_edges: bool = False
    """Compute the edges of the control image, which is then a picture, as in training."""
    prompt: str | None = None
    """Prompt of the images."""
    prompts_file: str | None = None
    """File of prompts, instead of one prompt: one per line (.txt), per object (.jsonl) or per row (.csv, .tsv)."""
    prompt_column: str = "prompt"
    """Column of the prompts in a .jsonl, .csv or .tsv."""
    negative_prompt: str = ""
    """Negative prompt; empty: the null caption."""
    num_images_per_prompt: int = 1
    """Number of images per prompt, with the seeds seed, seed + 1, …"""
    seed: int = 0
    """Seed of the first image of each prompt."""
    num_inference_steps: int | None = None
    """Number of steps of the sampler; default: 20, or those that a network of few steps was trained for."""
    guidance_scale: float | None = None
    """Weight of the prompt against the negative prompt; 1 or less: no guidance, at half the work. Default: 4.5, or none for a
    network of few steps, which guides itself."""
    guidance_by: GuidanceBy = "prompt"
    """Guidance away from the negative prompt (prompt), or from a pass of the same prompt whose middle blocks see a part of the
    tokens (routing), for networks that TREAD trained."""
    sampler: str | None = None
    """Sampler: dpm-solver++, ddim (of first order), sa-solver (adds noise on the way), euler (rectified flow only) or lcm (for
    networks distilled by consistency); default: dpm-solver++, or that of a network of few steps."""
    eta: float = 0.0
    """Noise of ddim: 0 for none, 1 for as much as in the forward process."""
    shift: float | None = None
    """Shift of rectified flow's times towards noise, for a size other than that of the last training; default: as in
    training."""
    height: int | None = None
    """Height in pixels; default: the checkpoint's resolution."""
    width: int | None = None
    """Width in pixels; default: the checkpoint's resolution."""
    image: str | None = None
    """Image to begin from, a file; it gives the size of what is drawn."""
    mask: str | None = None
    """Mask over the image, a file of its size: white is drawn anew, black is kept; default: all of it is drawn anew."""
    strength: float = 0.8
    """Change of the image: share of the steps that are taken, from 0 (none) to 1 (as if there were no image)."""
    paste_kept: bool = False
    """Put the image's own pixels back where the mask is black; else they are what the VAE makes of them."""
    resolution_binning: bool = True
    """Draw at the nearest size that PixArt was trained on, then scale and crop."""
    grid: bool = False
    """Also write a grid of all images: grid.png in the folder, or --out itself if that is a .png. One row per prompt."""
    scale: int = 0
    """Integer factor by which the grid enlarges its images, without smoothing; 0: until a side has 256 pixels."""
    batch_size: int = 4
    """Number of images drawn together; it changes them only by rounding."""
    device: str = "auto"
    """Device: cuda, cpu, …; auto: cuda if available."""
    dtype: AutoDtype = "auto"
    """Number format of all computation; auto: bfloat16 if the hardware supports it, otherwise float32."""
    staged: bool = False
    """Load text encoder, network and VAE one after the other: XL at 1024 px in 8 GB, with a quantised text encoder."""
    tiled_vae: bool = False
    """Decode in tiles: little memory at any size."""
    weights: Weights = "full"
    """Number format of the network's weights: full (dtype), int8 or int4: a half or about a quarter of bfloat16's memory."""
    quantisation: Quantisation = "none"
    """Quantisation of the text encoder: int4, or by a library bitsandbytes, torchao (8 bits) or bitsandbytes_4bit."""
    text_encoder_device: str | None = None
    """Device of the text encoder; cpu keeps it off the GPU."""
    rewrite: RewriteConfig = field(default_factory=RewriteConfig)
    """Rewriter of the prompts."""
    plan: bool = False
    """Print the memory that these settings take, computed, and draw nothing."""
    text_encoder: str | None = None
    """Folder or hub id of the text encoder, if not the one in pipeline.json."""
    vae: str | None = None
    """Folder or hub id of the VAE, if not the one in pipeline.json."""

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.prompts_file is None):
            raise ValueError("expected either --prompt or --prompts_file" + (", found both" if self.prompt is not None else ""))
        if self.scale < 0:
            raise ValueError(f"scale must be 0 or more, found {self.scale}")
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength must be 0 to 1, found {self.strength:g}")
        if (self.mask and not self.image) or (self.paste_kept and not self.mask):
            raise ValueError("expected --mask with --image, and --paste_kept with --mask")
        if (self.control is None) != (self.control_image is None) or (self.compute_edges and self.control is None):
            raise ValueError("expected --control with --control_image, and --compute_edges with both")
        self.sampling()
        self.runtime()
        parse_choices(self.lora)
        self.chosen_control()

    def sampling(self) -> SamplingConfig:
        """Sampler, number of steps and guidance."""
        return SamplingConfig(
            sampler=self.sampler,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            eta=self.eta,
            shift=self.shift,
            guidance_by=self.guidance_by,
        )

    def runtime(self) -> RuntimeConfig:
        """Devices, number formats and batch size."""
        return RuntimeConfig(
            device=self.device,
            dtype=self.dtype,
            staged=self.staged,
            text_encoder_device=self.text_encoder_device,
            weights=self.weights,
            quantisation=self.quantisation,
            tiled_vae=self.tiled_vae,
            batch_size=self.batch_size,
        )

    def chosen_control(self) -> ControlChoice | None:
        """The control; None if there is none."""
        return None if self.control is None else ControlChoice.parse(self.control)

    def request(self) -> GenerationRequest:
        """Prompts, seeds and sizes. Raises UserError for a file of prompts that holds none, and for one that is no image."""
        image, mask = self._edited()
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
            image=image,
            mask_image=mask,
            strength=self.strength,
            paste_kept=self.paste_kept,
            resolution_binning=self.resolution_binning,
            control_image=self._control_image(),
            compute_edges=self.compute_edges,
            sampling=self.sampling(),
        )

    def _edited(self) -> "tuple[Image.Image | None, Image.Image | None]":
        """The image to begin from, and its mask."""
        from model.generation.pixels import read_image, read_mask

        image = None if self.image is None else read_image(_read(self.image, setting="image"))
        return image, None if self.mask is None else read_mask(_read(self.mask, setting="mask"))

    def _control_image(self) -> "Image.Image | None":
        from model.generation.pixels import read_image

        if self.control_image is None:
            return None
        return read_image(_read(self.control_image, setting="control_image"), setting="control_image")


def main(config: GenerateConfig) -> int:
    """Draws the images that are not there yet and returns 0."""
    from model.generation.pipeline import open_pipeline

    request, runtime = config.request(), config.runtime().resolved()
    if config.plan:
        from model.generation.memory import memory_lines

        root = find_checkpoint(config.checkpoint)
        names = {"text_encoder": config.text_encoder, "vae": config.vae}
        print("\n".join(memory_lines(root, request, runtime, **names, control=config.chosen_control())))
        return 0
    paths = image_paths(Path(config.out), request, grid=config.grid)
    if config.dtype == AUTO:  # what was started on another machine is finished in its format
        runtime = replace(runtime, dtype=begun_dtype(paths) or runtime.dtype)
    rewriting = _rewriting(config, request, device=runtime.text_encoder_device or runtime.device)
    lora, control = parse_choices(config.lora), config.chosen_control()
    chosen: list[LoraChoice | ControlChoice] = [*lora, *([control] if control else [])]
    values = image_values(config.checkpoint, request, runtime, rewriting=rewriting, lora=lora, control=control)
    added = "".join(f" + {choice.scale:g} x {choice.path}" for choice in chosen)
    say(f"{config.checkpoint}{added} on {runtime.device} in {runtime.dtype}")
    if rewriting is not None:
        say(rewriting.summary())
        request = replace(request, prompts=rewriting.drawn(request.prompts or ()))
    pipeline = open_pipeline(
        config.checkpoint, runtime=runtime, text_encoder=config.text_encoder, vae=config.vae, lora=lora, control=control
    )
    drawing = draw(pipeline, request, paths, values)
    _print_summary(drawing, max_caption_tokens=pipeline.transformer_config.max_caption_tokens)
    if config.grid:
        images = drawing.unsaved if paths is None else [open_image(path) for path in paths]
        path = Path(config.out) if paths is None else Path(config.out) / GRID
        columns = config.num_images_per_prompt if len(request.prompts or ()) > 1 else None
        save_png(make_grid(images, columns=columns, scale=config.scale), path, {"images": values})
    return 0


def _rewriting(config: GenerateConfig, request: GenerationRequest, *, device: str) -> "Rewriting | None":
    """The prompts as they are drawn; None if they are drawn as written."""
    if config.rewrite.model is None:
        return None
    from model.rewriting.rewriting import open_prompt_rewriter

    rewriter = open_prompt_rewriter(
        config.rewrite, checkpoint=config.checkpoint, text_encoder=config.text_encoder, device=device
    )
    return rewriter.rewrite(request.prompts or (), cache=config.rewrite.cache)


def _read(path: str, *, setting: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give an image file", setting=setting) from None


def _print_summary(drawing: DrawingResult, *, max_caption_tokens: int) -> None:
    images = f"{drawing.num_drawn} image{'' if drawing.num_drawn == 1 else 's'}"
    speed = f", {drawing.seconds_each:.1f} s each" if drawing.num_drawn else ""
    say(f"{images} drawn{speed}, {drawing.num_present} were there already")
    if line := drawing.cut_line(max_caption_tokens):
        say(line)


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            GenerateConfig,
            main,
            prog="python -m model.generate",
            example='python -m model.generate --checkpoint runs/aesthetic --prompt "a red owl" --out owl.png',
        )
    )
