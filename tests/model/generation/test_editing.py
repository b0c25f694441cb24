"""Image to image and inpainting: the steps of diffusers, what is kept stays, and the strength goes from nothing to all."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image

from foundry.errors import UserError
from model.diffusion import make_objective
from model.encoders.vae import to_pixels
from model.generation.pipeline import Pipeline, open_pipeline
from model.generation.pipeline_parts import RuntimeConfig
from model.generation.pixels import read_image, read_mask
from model.generation.request import GeneratedImage, GenerationRequest
from model.sampling import SAMPLERS, LatentEdit, SamplingConfig, denoise, image_generators, make_scheduler
from tests.model.tiny_parts import SIDE_PX, save_tiny_checkpoint

PAIRS = [
    (objective, sampler)
    for objective in ("diffusion", "rectified_flow")
    for sampler in SAMPLERS
    if (objective, sampler) != ("diffusion", "euler")
]
LATENTS = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
NOISE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
MASK = torch.zeros(1, 1, 8, 8)
MASK[..., 4:] = 1


def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Something that depends on the latents and the timestep."""
    return 0.3 * latents.roll(1, -1) + timestep / 2000


def of_diffusers(objective: str, config: SamplingConfig, *, strength: float, mask: torch.Tensor | None) -> torch.Tensor:
    """The steps of diffusers' pipelines, their own choice of timesteps among them, written down once more."""
    scheduler = make_scheduler(make_objective(objective), config)
    options = {"generator": image_generators([5, 6])} if config.sampler in ("sa-solver", "lcm") else {}
    pipeline: Any = SimpleNamespace(scheduler=scheduler)
    get_timesteps = StableDiffusionImg2ImgPipeline.get_timesteps
    timesteps, _ = get_timesteps(pipeline, config.num_inference_steps, strength, "cpu")

    def noised(step: int) -> torch.Tensor:
        timestep = timesteps[step : step + 1].repeat(len(NOISE))
        image = LATENTS.repeat(len(NOISE), 1, 1, 1)
        if hasattr(scheduler, "scale_noise"):
            return scheduler.scale_noise(image, timestep, NOISE)  # type: ignore[no-any-return]
        return scheduler.add_noise(image, NOISE, timestep)  # type: ignore[no-any-return]

    latents = noised(0)
    for step, timestep in enumerate(timesteps):
        latents = scheduler.step(predict(latents, timestep), timestep, latents, **options, return_dict=False)[0]
        if mask is not None:
            kept = noised(step + 1) if step < len(timesteps) - 1 else LATENTS
            latents = (1 - mask) * kept + mask * latents
    return latents


@pytest.mark.parametrize("strength", [0.3, 0.75])
@pytest.mark.parametrize("mask", [None, MASK], ids=["image", "mask"])
@pytest.mark.parametrize(("objective", "sampler"), PAIRS)
def test_steps_are_those_of_diffusers(objective: str, sampler: str, *, mask: torch.Tensor | None, strength: float) -> None:
    config, seen = SamplingConfig(sampler=sampler, num_inference_steps=10), []
    found = denoise(
        predict,
        make_objective(objective),
        noise=NOISE,
        config=config,
        generators=image_generators([5, 6]),
        edit=LatentEdit(latents=LATENTS, strength=strength, mask=mask),
        on_step=lambda step, timestep, latents: seen.append(step),
    )
    torch.testing.assert_close(found, of_diffusers(objective, config, strength=strength, mask=mask))
    assert seen == list(range(int(10 * strength)))
    if mask is not None:
        assert torch.equal(found[..., :4], LATENTS.expand_as(found)[..., :4])
        assert (found[..., 4:] - LATENTS[..., 4:]).abs().max() > 0.1


@pytest.fixture(scope="module", params=["diffusion", "rectified_flow"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    root = save_tiny_checkpoint(tmp_path_factory.mktemp("editing"), objective=request.param)
    return open_pipeline(root, runtime=RuntimeConfig(dtype="float32"))


def picture(width: int = SIDE_PX, height: int = SIDE_PX) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels.repeat(4, 0).repeat(4, 1))


def right_half(width: int = SIDE_PX, height: int = SIDE_PX) -> Image.Image:
    white = np.zeros((height, width), np.uint8)
    white[:, width // 2 :] = 255
    return Image.fromarray(white)


def draw(pipeline: Pipeline, **options: Any) -> GeneratedImage:
    sampling = SamplingConfig(num_inference_steps=4, guidance_scale=2.0)
    return pipeline(GenerationRequest(prompts=("a red owl",), seed=3, sampling=sampling, **options))[0]


def array(image: Any) -> np.ndarray:
    return np.asarray(image).astype(int)


def round_trip(pipeline: Pipeline, image: Image.Image) -> np.ndarray:
    """What the VAE makes of an image, 0 to 255."""
    vae = pipeline.parts.vae.get()
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    pixels = to_pixels(vae.decode(vae.encode(tensor).sample(vae.scale, generator=None)))
    return (pixels[0].permute(1, 2, 0).numpy() * 255).round().astype(int)


def test_the_strength_goes_from_the_image_to_none_of_it(pipeline: Pipeline) -> None:
    image = picture(width=40)
    unchanged = draw(pipeline, image=image, strength=0.0)
    assert np.abs(array(unchanged.image) - round_trip(pipeline, image)).max() <= 1
    anew = draw(pipeline, image=image, strength=1.0)
    assert np.array_equal(array(anew.image), array(draw(pipeline, width=40).image))
    half = draw(pipeline, image=image, strength=0.5)
    assert not torch.allclose(half.latents, unchanged.latents) and not torch.allclose(half.latents, anew.latents)


def test_black_of_a_mask_is_kept(pipeline: Pipeline) -> None:
    image = picture()
    kept = draw(pipeline, image=image, strength=0.0).latents
    for strength in (0.5, 1.0):
        found = draw(pipeline, image=image, mask_image=right_half(), strength=strength)
        assert torch.equal(found.latents[..., :8], kept[..., :8])
        assert (found.latents[..., 8:] - kept[..., 8:]).abs().max() > 0.1
        pasted = draw(pipeline, image=image, mask_image=right_half(), strength=strength, paste_kept=True)
        assert np.array_equal(array(pasted.image)[:, :16], array(image)[:, :16])
        assert np.array_equal(array(pasted.image)[:, 16:], array(found.image)[:, 16:])


def test_a_white_pixel_is_drawn_anew_with_all_of_its_latent(pipeline: Pipeline) -> None:
    image, white = picture(), np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    white[5, 7] = 255
    kept = draw(pipeline, image=image, strength=0.0).latents
    found = draw(pipeline, image=image, mask_image=Image.fromarray(white), strength=0.8).latents
    assert (found != kept).any(0).nonzero().tolist() == [[5 // 2, 7 // 2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": picture().resize((30, 32))}, "expected an image with sides that 4 divides, found 32 x 30 px"),
        ({"image": picture(), "height": 64}, "the image has 32 x 32 px .* and 64 x 32 were asked for"),
        ({"image": picture(), "strength": 1.2}, "strength: expected 0 to 1"),
        ({"image": picture(), "strength": 0.2}, "strength: 0.2 of 4 steps is less than one step: give more, or 0"),
        ({"mask_image": right_half()}, "mask_image: expected with an image alone"),
        ({"image": picture(), "paste_kept": True}, "paste_kept: expected with a mask alone"),
        ({"image": picture(), "mask_image": right_half(height=16)}, "the image's size, 32 x 32 px .* found 16 x 32"),
    ],
)
def test_what_does_not_fit_is_told(pipeline: Pipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw(pipeline, **options)


def test_files_are_read_upright_and_masks_by_white_or_transparency(tmp_path: Path) -> None:
    def stored(image: Image.Image, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, "PNG", **options)
        return buffer.getvalue()

    turned = Image.Exif()
    turned[0x0112] = 6
    assert read_image(stored(picture(width=40), exif=turned)).size == (32, 40)
    expected = np.asarray(right_half()) > 0
    transparent = picture().convert("RGBA")
    transparent.putalpha(Image.fromarray(np.where(expected, 0, 255).astype(np.uint8)))
    for mask in (right_half(), right_half().convert("RGB"), transparent):
        assert np.array_equal(np.asarray(read_mask(stored(mask))) > 127, expected)
    with pytest.raises(UserError, match="mask: expected an image file, found not_an_image") as error:
        read_mask(b"none")
    assert error.value.setting == "mask"
