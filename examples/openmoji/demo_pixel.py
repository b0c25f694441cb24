"""Draws the class of each prompt's object by the network of the pixel stage, which knows classes and reads no words.

python -m examples.openmoji.demo_pixel --checkpoint CHECKPOINT --features demo/features/pixel/64 --out demo/classes

The images bear the names of the prompts, so that `trainer.evaluate --images` judges them by what the prompts say. Each has
the noise of the seed in its name, which counts on from prompt to prompt as in the evaluation of the other stages. Everything
is computed in float32, on any machine: these are few and small images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from examples.openmoji.demo_commands import GUIDANCE
from foundry.command_line import run_command
from foundry.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class PixelConfig:
    """Settings: checkpoint, classes and output."""

    checkpoint: str
    """A checkpoint of the pixel stage."""
    features: str
    """FEATURES/pixel/<resolution> that it was trained on: the classes by number."""
    out: str
    """Folder of the images."""
    prompts_per_category: int = 4
    """Number of prompts per category, as in the evaluation of the other stages."""


def main(config: PixelConfig) -> int:
    """Draws what is not there yet; returns 0. Raises UserError for a checkpoint or features of another kind."""
    from examples.openmoji.demo_prompts import demo_prompts
    from model.formats.checkpoint import checkpoint_fingerprint, find_checkpoint
    from model.generation.image_files import image_names, is_drawn, save_png

    prompts = demo_prompts(config.prompts_per_category)
    names = image_names([one.text for one in prompts], range(len(prompts)))
    paths = [Path(config.out) / name for name in names]
    kinds = [one.asked.objects[0].kind for one in prompts]
    fingerprint = checkpoint_fingerprint(find_checkpoint(config.checkpoint))
    values = [
        {"prompt": one.text, "class": kind, "noise_seed": place, "checkpoint_fingerprint": fingerprint}
        for place, (one, kind) in enumerate(zip(prompts, kinds, strict=True))
    ]
    missing = [place for place, path in enumerate(paths) if not is_drawn(path, values[place])]
    images = _draw(config, [kinds[place] for place in missing], noise_seeds=missing) if missing else []
    for place, image in zip(missing, images, strict=True):
        save_png(image, paths[place], values[place])
    print(f"{len(missing)} images of classes drawn in float32, {len(paths) - len(missing)} were there already")
    return 0


def _draw(config: PixelConfig, kinds: Sequence[str], *, noise_seeds: Sequence[int]) -> "list[Image]":
    """An image of each class."""
    import torch
    from PIL import Image

    from model.diffusion import make_objective
    from model.encoders.vae import VAEConfig, load_vae, to_pixels
    from model.formats.checkpoint import load_checkpoint
    from model.generation.pixels import to_output
    from model.sampling import SamplingConfig, denoise, draw_noise, image_generators
    from trainer.monitoring.sample_grids import ClassPrediction

    network, pipeline = load_checkpoint(config.checkpoint, dtype=torch.float32)
    sizes, sampling = network.config, SamplingConfig(guidance_scale=GUIDANCE).resolved()
    if sizes.conditioning != "class":
        raise UserError(f"{config.checkpoint} reads captions: give a checkpoint of the pixel stage")
    predict = ClassPrediction(network, torch.tensor(_labels(config, kinds)), sampling.scale)
    noise = draw_noise(image_generators(noise_seeds), (sizes.in_channels, sizes.sample_size, sizes.sample_size))
    objective = make_objective(pipeline.objective, pipeline.objective_settings)
    latents = denoise(predict, objective, noise=noise, config=sampling)  # (B, C, h, w)
    vae = load_vae(VAEConfig(name=pipeline.vae.name, dtype="float32"), scale=pipeline.latent_scale)
    images = [to_output(to_pixels(vae.decode(own[None])), "pil") for own in latents]
    return [image for image in images if isinstance(image, Image.Image)]


def _labels(config: PixelConfig, kinds: Sequence[str]) -> list[int]:
    """The classes' numbers. Raises UserError for one that the network has never seen."""
    from foundry.storage.folder import Folder
    from trainer.features.info import read_info

    names = read_info(Folder(config.features)).class_names
    if unknown := sorted(set(kinds) - set(names)):
        raise UserError(f"{config.features} has no class {unknown[0]}: train on more scenes")
    return [names.index(kind) for kind in kinds]


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            PixelConfig,
            main,
            prog="python -m examples.openmoji.demo_pixel",
            example="python -m examples.openmoji.demo_pixel --checkpoint CHECKPOINT --features FEATURES --out demo/classes",
        )
    )
