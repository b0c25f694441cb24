"""Prompts to images: those of diffusers' pipeline, each from its prompt and seed alone, each part there while it works."""

import dataclasses
import gc
import inspect
import json
import re
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PixArtAlphaPipeline

from foundry.errors import UserError
from model.convert import ConvertConfig
from model.convert import main as convert
from model.diffusion import make_objective
from model.dit import Captions, DiT
from model.dit_config import DiTConfig
from model.encoders.text_encoder import TextEncoder
from model.formats.checkpoint import PipelineConfig, save_checkpoint
from model.generation.pipeline import Pipeline, open_pipeline
from model.generation.pipeline_parts import RuntimeConfig
from model.generation.request import GeneratedImage, GenerationRequest
from model.generation.resolution import BINNED_RESOLUTIONS, image_size, size_table
from model.sampling import SamplingConfig
from tests.model.tiny_parts import (
    SIDE_PX,
    pipeline_config,
    save_tiny_checkpoint,
    save_tiny_t5,
    save_tiny_vae,
    tiny_dit,
)

ROOT = Path(__file__).resolve().parents[3]
PROMPTS = ("A red owl on the left.", "key")
# A random network is far from predicting noise, so that latents grow: the scale brings them back to what a VAE sees.
SCALES = {"diffusion": 150.0, "rectified_flow": 3.0}


class Pair:
    """Our pipeline on a checkpoint, and diffusers' on what `model.convert` makes of it."""

    def __init__(
        self, folder: Path, *, objective: str, micro_conditioning: bool = False, sampler: str = "dpm-solver++"
    ) -> None:
        t5 = save_tiny_t5(folder / "t5")
        vae = save_tiny_vae(folder / "vae", scaling_factor=SCALES[objective])
        sample_size = 128 if micro_conditioning else 16  # diffusers sends the sizes along at a sample size of 128 only
        dit = tiny_dit(
            micro_conditioning=micro_conditioning, learned_variance=objective == "diffusion", sample_size=sample_size
        )
        checkpoint = save_checkpoint(folder / "ours", dit, pipeline_config(objective=objective, text_encoder=t5, vae=vae))
        self.ours = open_pipeline(checkpoint, runtime=RuntimeConfig(dtype="float32", batch_size=3))
        theirs = str(folder / "theirs")
        convert(ConvertConfig(checkpoint=str(checkpoint), out=theirs, source="native", target="diffusers"))
        self.theirs = PixArtAlphaPipeline.from_pretrained(theirs)
        assert isinstance(self.theirs.scheduler, DPMSolverMultistepScheduler)
        if sampler == "ddim":
            self.theirs.scheduler = DDIMScheduler.from_config(make_objective(objective).scheduler_config(sampler))
        self.theirs.set_progress_bar_config(disable=True)

    def their_images(self, *, seeds: list[int], **options: Any) -> np.ndarray:
        """(B, H, W, 3) in 0..1."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        settings = {"output_type": "np", "use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 20}
        return np.asarray(
            self.theirs(generator=generators, **settings | {"height": SIDE_PX, "width": SIDE_PX} | options).images
        )


def our_images(generated: list[GeneratedImage]) -> np.ndarray:
    return np.stack([np.asarray(one.image) for one in generated])


def assert_same_images(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Within 1/255, and images that tell: neither flat nor clipped nor all alike."""
    assert ours.shape == theirs.shape
    assert ours.std() > 0.05 and ((ours > 0) & (ours < 1)).mean() > 0.5
    assert len(ours) == 1 or np.abs(ours[0] - ours[1]).max() > 0.1
    assert np.abs(ours - theirs).max() <= 1 / 255


@pytest.mark.parametrize("objective", ["diffusion", "rectified_flow"])
def test_images_are_those_of_diffusers(tmp_path: Path, objective: str) -> None:
    pair = Pair(tmp_path, objective=objective)
    request = GenerationRequest(prompts=PROMPTS, num_images_per_prompt=2, seed=7, negative_prompt="blue key")
    ours = our_images(pair.ours(request, output="numpy"))
    theirs = pair.their_images(
        prompt=list(PROMPTS), num_images_per_prompt=2, seeds=[7, 8, 7, 8], negative_prompt="blue key", num_inference_steps=20
    )
    assert_same_images(ours, theirs)


def test_images_with_micro_conditioning_and_other_sides_are_those_of_diffusers(tmp_path: Path) -> None:
    pair = Pair(tmp_path, objective="diffusion", micro_conditioning=True)
    request = GenerationRequest(prompts=PROMPTS, height=48, width=24, sampling=SamplingConfig(num_inference_steps=8))
    ours = our_images(pair.ours(request, output="numpy"))
    assert ours.shape == (2, 48, 24, 3)
    theirs = pair.their_images(prompt=list(PROMPTS), seeds=[0, 0], height=48, width=24, num_inference_steps=8)
    assert_same_images(ours, theirs)


def test_ddim_with_noise_and_given_timesteps_draw_the_images_of_diffusers(tmp_path: Path) -> None:
    ddim = Pair(tmp_path / "ddim", objective="diffusion", sampler="ddim")
    sampling = SamplingConfig(sampler="ddim", eta=0.5, num_inference_steps=10)
    ours = our_images(ddim.ours(GenerationRequest(prompts=PROMPTS, seeds=(3, 4), sampling=sampling), output="numpy"))
    theirs = ddim.their_images(prompt=list(PROMPTS), seeds=[3, 4], eta=0.5, num_inference_steps=10)
    assert_same_images(ours, theirs)
    given = Pair(tmp_path / "given", objective="diffusion")
    sampling = SamplingConfig(timesteps=(950, 700, 400, 100))
    ours = our_images(given.ours(GenerationRequest(prompts=PROMPTS, sampling=sampling), output="numpy"))
    theirs = given.their_images(prompt=list(PROMPTS), seeds=[0, 0], timesteps=[950, 700, 400, 100])
    assert_same_images(ours, theirs)


def test_a_binned_image_is_that_of_diffusers(tmp_path: Path) -> None:
    """The tables are for 256 px and more: the checkpoint says 256, which diffusers reads from a sample size of 32."""
    pair = Pair(tmp_path, objective="rectified_flow")
    ours = pair.ours
    ours.config = dataclasses.replace(ours.config, resolution=256)
    sampling = SamplingConfig(num_inference_steps=2)
    request = GenerationRequest(prompts=PROMPTS[:1], height=100, width=90, sampling=sampling)
    drawn = ours(request, output="numpy")[0]
    assert drawn.latents.shape == (4, 272 // 2, 240 // 2)
    pair.theirs.transformer.register_to_config(sample_size=32)
    theirs = pair.their_images(
        prompt=[PROMPTS[0]], seeds=[0], height=100, width=90, num_inference_steps=2, use_resolution_binning=True
    )
    assert np.abs(np.asarray(drawn.image)[None] - theirs).max() <= 1 / 255
    assert theirs.shape == (1, 100, 90, 3)
    plain = ours(dataclasses.replace(request, height=104, width=96, resolution_binning=False), output="latents")[0]
    assert plain.latents.shape == (4, 52, 48)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("pipeline"), objective="rectified_flow")


def latents_of(pipeline: Pipeline, request: GenerationRequest) -> torch.Tensor:
    return torch.stack([image.latents for image in pipeline(request, output="latents")])


def test_an_image_depends_on_its_prompt_and_seed_alone(checkpoint: Path) -> None:
    pipeline = open_pipeline(checkpoint, runtime=RuntimeConfig(dtype="float32", batch_size=4))
    together = pipeline(GenerationRequest(prompts=(*PROMPTS, "a"), num_images_per_prompt=2, seed=5), output="latents")
    assert [(image.prompt, image.seed) for image in together] == [(p, s) for p in (*PROMPTS, "a") for s in (5, 6)]
    alone = pipeline(GenerationRequest(prompts=(PROMPTS[1],), seed=6), output="latents")[0]
    torch.testing.assert_close(alone.latents, together[3].latents, rtol=1e-4, atol=1e-4)
    assert (alone.latents - together[2].latents).abs().max() > 0.1  # the other seed
    assert (together[1].latents - together[3].latents).abs().max() > 0.1  # the other prompt
    some = list(pipeline.stream(GenerationRequest(prompts=PROMPTS, num_images_per_prompt=2, seed=5), images=[3]))
    torch.testing.assert_close(some[0].latents, alone.latents, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guidance_scale", [1.0, 0.5, 0.0])
def test_without_guidance_nothing_is_computed_for_the_negative_prompt(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, guidance_scale: float
) -> None:
    pipeline = open_pipeline(checkpoint)
    batches: list[int] = []
    texts: list[str] = []
    forward, encode = DiT.forward, TextEncoder.encode

    def forward_spy(self: DiT, latents: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        batches.append(len(latents))
        return forward(self, latents, *args, **kwargs)

    def encode_spy(self: TextEncoder, captions: Sequence[str]) -> Captions:
        texts.extend(captions)
        return encode(self, captions)

    monkeypatch.setattr(DiT, "forward", forward_spy)
    monkeypatch.setattr(TextEncoder, "encode", encode_spy)
    sampling = SamplingConfig(guidance_scale=guidance_scale, num_inference_steps=3)
    pipeline(GenerationRequest(prompts=("owl",), negative_prompt="blue", sampling=sampling), output="latents")
    assert batches == [1, 1, 1] and texts == ["owl"]
    pipeline(GenerationRequest(prompts=("owl",), negative_prompt="blue"), output="latents")
    assert batches[3:] == [2] * 20 and texts[1:] == ["owl", "blue"]


def test_guidance_below_1_draws_the_images_of_diffusers(tmp_path: Path) -> None:
    pair = Pair(tmp_path, objective="rectified_flow")
    sampling = SamplingConfig(guidance_scale=0.5, num_inference_steps=4)
    ours = our_images(pair.ours(GenerationRequest(prompts=PROMPTS, sampling=sampling), output="numpy"))
    assert_same_images(ours, pair.their_images(prompt=list(PROMPTS), seeds=[0, 0], guidance_scale=0.5, num_inference_steps=4))


def test_prompts_that_are_encoded_once_draw_what_their_texts_draw(checkpoint: Path) -> None:
    pipeline, negative = open_pipeline(checkpoint, runtime=RuntimeConfig(dtype="float32")), ("blue key", "small")
    sampling = SamplingConfig(num_inference_steps=3)
    kept = GenerationRequest(
        captions=pipeline.encode(PROMPTS),
        negative_captions=pipeline.encode(negative),
        num_images_per_prompt=2,
        sampling=sampling,
    )
    found = latents_of(pipeline, kept)
    for index, (prompt, without) in enumerate(zip(PROMPTS, negative, strict=True)):
        request = GenerationRequest(prompts=(prompt,), negative_prompt=without, num_images_per_prompt=2, sampling=sampling)
        torch.testing.assert_close(found[2 * index : 2 * index + 2], latents_of(pipeline, request), rtol=1e-4, atol=1e-4)


def test_precomputed_captions_and_noise_give_the_same_images_without_a_text_encoder(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = open_pipeline(checkpoint)
    expected = latents_of(pipeline, GenerationRequest(prompts=PROMPTS, seed=2))
    captions, negative = pipeline.encode(PROMPTS), pipeline.encode([""])
    noise = torch.cat([torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))] * 2)
    fresh = open_pipeline(checkpoint)
    monkeypatch.setattr("model.generation.pipeline_parts.load_text_encoder", None)  # a call would raise
    given = GenerationRequest(captions=captions, negative_captions=negative, seed=2)
    assert torch.equal(latents_of(fresh, given), expected)
    assert torch.equal(latents_of(fresh, dataclasses.replace(given, noise=noise)), expected)
    each = dataclasses.replace(given, negative_captions=negative.select([0, 0]))
    assert torch.equal(latents_of(fresh, each), expected)


def test_staged_parts_are_in_memory_one_after_the_other(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: dict[str, list[weakref.ref[Any]]] = {"text_encoder": [], "transformer": [], "vae": []}
    for kind, loader in [("text_encoder", "_load_text_encoder"), ("transformer", "_load_transformer"), ("vae", "_load_vae")]:
        load = getattr(__import__("model.generation.pipeline_parts", fromlist=[loader]), loader)

        def spy(*args: Any, kind: str = kind, load: Any = load) -> Any:
            gc.collect()
            others = [name for name, parts in alive.items() if name != kind and any(part() is not None for part in parts)]
            assert not others, f"{others} still in memory when {kind} is loaded"
            part = load(*args)
            alive[kind].append(weakref.ref(part))
            return part

        monkeypatch.setattr(f"model.generation.pipeline_parts.{loader}", spy)
    request = GenerationRequest(prompts=PROMPTS, num_images_per_prompt=3)
    staged = open_pipeline(checkpoint, runtime=RuntimeConfig(staged=True, batch_size=2))(request)
    assert [len(parts) for parts in alive.values()] == [1, 1, 1]
    gc.collect()
    assert all(part() is None for parts in alive.values() for part in parts)
    monkeypatch.undo()
    resident = open_pipeline(checkpoint, runtime=RuntimeConfig(batch_size=2))(request)
    for one, other in zip(staged, resident, strict=True):  # prompts were encoded in other batches: rounding
        assert np.abs(np.asarray(one.image).astype(int) - np.asarray(other.image)).max() <= 1


def test_a_callback_sees_every_step_of_every_batch(checkpoint: Path) -> None:
    seen: list[tuple[int, float, int]] = []
    pipeline = open_pipeline(checkpoint, runtime=RuntimeConfig(batch_size=2))
    request = GenerationRequest(prompts=PROMPTS[:1], num_images_per_prompt=3, sampling=SamplingConfig(num_inference_steps=4))
    pipeline(request, output="latents", on_step=lambda step, timestep, latents: seen.append((step, timestep, len(latents))))
    assert [step for step, _, _ in seen] == [0, 1, 2, 3] * 2
    assert [size for _, _, size in seen] == [2] * 4 + [1] * 4
    assert seen[0][1] > seen[1][1] > seen[2][1]


def test_bfloat16_draws_nearly_the_same(checkpoint: Path) -> None:
    request = GenerationRequest(prompts=PROMPTS)
    exact = latents_of(open_pipeline(checkpoint, runtime=RuntimeConfig(dtype="float32")), request)
    rounded = latents_of(open_pipeline(checkpoint, runtime=RuntimeConfig(dtype="bfloat16")), request)
    assert rounded.dtype == torch.float32
    assert 0 < ((rounded - exact).norm() / exact.norm()).item() < 0.1


def test_weights_of_few_bits_draw_nearly_the_same(checkpoint: Path) -> None:
    request = GenerationRequest(prompts=PROMPTS, sampling=SamplingConfig(num_inference_steps=5))
    exact = latents_of(open_pipeline(checkpoint, runtime=RuntimeConfig(dtype="float32")), request)
    errors = []
    for weights in ("int8", "int4"):
        pipeline = open_pipeline(checkpoint, runtime=RuntimeConfig(dtype="float32", weights=weights))
        errors.append(float((latents_of(pipeline, request) - exact).norm() / exact.norm()))
    assert 0 < errors[0] < 0.05 and errors[0] < errors[1] < 0.5, errors
    with pytest.raises(ValueError, match="weights must be one of full, int8, int4, found int2"):
        RuntimeConfig(weights="int2")  # type: ignore[arg-type]


def test_a_prompt_that_is_too_long_says_how_much_is_not_read(checkpoint: Path) -> None:
    sampling = SamplingConfig(num_inference_steps=1)
    request = GenerationRequest(prompts=("owl", "owl " * 30), sampling=sampling)
    images = open_pipeline(checkpoint)(request, output="latents")
    assert [image.num_cut_tokens for image in images] == [0, 11]  # 30 words and </s>, of which 20 are read


def test_an_encoder_that_the_checkpoint_was_not_trained_with_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    other = save_tiny_t5(tmp_path / "other", seed=1)
    with pytest.raises(
        UserError, match=r"trained with the text_encoder .*fingerprint .* but .*other has .*: give the right one"
    ):
        open_pipeline(checkpoint, text_encoder=str(other))(GenerationRequest(prompts=("a",)))
    other = save_tiny_vae(tmp_path / "vae", seed=1)
    with pytest.raises(UserError, match="trained with the vae"):
        open_pipeline(checkpoint, vae=str(other))(GenerationRequest(prompts=("a",)))


def test_encoders_that_a_checkpoint_does_not_name_are_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "nameless")
    record = tmp_path / "nameless" / "pipeline.json"
    values = json.loads(record.read_text())
    parts = {kind: values.pop(kind)["name"] for kind in ("text_encoder", "vae")}
    record.write_text(json.dumps(values))
    with pytest.raises(UserError, match="no vae is named here: name the one that this network was trained with"):
        open_pipeline(tmp_path / "nameless")
    with pytest.raises(UserError, match="no text_encoder is named here: name the one"):
        open_pipeline(tmp_path / "nameless", vae=parts["vae"])(GenerationRequest(prompts=("a",)))
    assert open_pipeline(tmp_path / "nameless", **parts)(GenerationRequest(prompts=("a",)))[0].image


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 30}, "multiples of 4 px, found 30 x 32: try 32 x 32|multiples of 4 px, found 30 x 32: try 28 x 32"),
        ({"width": -4}, "multiples of 4 px"),
        ({"height": 0}, "multiples of 4 px, found 0 x 32"),
        ({"noise": torch.zeros(1, 4, 8, 8)}, r"noise: expected \(1, 4, 16, 16\)"),
        ({"sampling": SamplingConfig(sampler="ddim", eta=0.5)}, "eta: expected 0 for the objective rectified_flow"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_loaded(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("model.generation.pipeline_parts.load_text_encoder", None)
    with pytest.raises(UserError, match=message):
        open_pipeline(checkpoint)(GenerationRequest(prompts=("a",), **options))


def test_captions_of_another_width_and_networks_without_captions_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    captions = Captions(tokens=torch.zeros(2, 5), lengths=torch.tensor([2]))
    with pytest.raises(UserError, match="expected at most 20 tokens of width 32, found 2 of width 5"):
        open_pipeline(checkpoint)(GenerationRequest(captions=captions, negative_captions=captions))
    with pytest.raises(UserError, match="expected at most 20 tokens of width 32, found 2 of width 5"):
        open_pipeline(checkpoint)(GenerationRequest(prompts=("a",), negative_captions=captions))
    dit = DiT(DiTConfig(conditioning="class", width=48, depth=1, num_heads=4))
    save_checkpoint(tmp_path / "classes", dit, PipelineConfig(objective="diffusion", resolution=32))
    with pytest.raises(UserError, match="draws classes, not prompts"):
        open_pipeline(tmp_path / "classes")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompts": ()},
        {"prompts": "a red owl"},
        {"prompts": ("a",), "num_images_per_prompt": 0},
        {"prompts": ("a",), "seeds": (1, 2)},
        {"prompts": ("a",), "seed": -1},
        {"prompts": ("a",), "seeds": (2**63,)},
        {"prompts": ("a",), "noise": torch.zeros(2, 4, 16, 16)},
    ],
)
def test_a_request_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        GenerationRequest(**options)


@pytest.mark.parametrize("resolution", BINNED_RESOLUTIONS)
def test_binning_takes_the_nearest_aspect_ratio_and_hands_over_what_was_asked_for(resolution: int) -> None:
    for ratio, (height, width) in size_table(resolution).items():
        found = image_size(int(height), int(width), resolution=resolution, binning=True, multiple=16)
        assert (found.height, found.width, found.resized) == (height, width, False), ratio
    odd = image_size(resolution - 3, resolution, resolution=resolution, binning=True, multiple=16)
    assert (odd.height, odd.width, odd.final_height) == (resolution, resolution, resolution - 3) and odd.resized
    with pytest.raises(UserError, match=f"multiples of 27 px, found {resolution} x {resolution}"):
        image_size(None, None, resolution=resolution, binning=True, multiple=27)


@pytest.mark.parametrize(
    ("header", "function"),
    [("PixArtAlphaPipeline", PixArtAlphaPipeline.__call__), ("`encode_prompt`", PixArtAlphaPipeline.encode_prompt)],
)
def test_every_argument_of_the_diffusers_pipeline_is_accounted_for(header: str, function: Any) -> None:
    """docs/generating.md has a row for each: its counterpart here, or why there is none."""
    text = (ROOT / "docs" / "generating.md").read_text(encoding="utf-8")
    table = text.partition(f"| {header} | here |\n|---|---|\n")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", table, flags=re.MULTILINE))
    parameters = [name for name in inspect.signature(function).parameters if name not in ("self", "kwargs")]
    assert set(parameters) == set(rows)
    known = {
        field.name
        for cls in (GenerationRequest, SamplingConfig, RuntimeConfig, PipelineConfig)
        for field in dataclasses.fields(cls)
    }
    known |= {*inspect.signature(Pipeline.stream).parameters, *inspect.signature(Pipeline.encode).parameters}
    known |= {"max_caption_tokens"}
    for name, row in rows.items():
        counterparts = re.findall(r"`(\w+)", row)
        assert row.startswith("none: ") or (counterparts and counterparts[0] in known), name
