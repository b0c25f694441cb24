"""Drawing with a control: images follow the control image at their size, and what does not go together is told."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foundry.command_line import run_command
from foundry.errors import UserError
from model.control.control import Control
from model.control.edges import edge_map
from model.control.settings import EDGES, ControlChoice
from model.formats.checkpoint import checkpoint_fingerprint, load_checkpoint, save_control_checkpoint
from model.generate import GenerateConfig, main
from model.generation.pipeline import Pipeline, open_pipeline
from model.generation.pipeline_parts import RuntimeConfig, Weights
from model.generation.request import GenerationRequest
from model.sampling import SamplingConfig
from tests.model.control.test_control import random_control
from tests.model.tiny_parts import SIDE_PX, save_tiny_checkpoint

RUNTIME = RuntimeConfig(dtype="float32", batch_size=2)
PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 255, (5, 9, 3), dtype=np.uint8)).resize((90, 50), 0)
"""A picture of another size than is drawn."""
SAMPLING = SamplingConfig(num_inference_steps=2, guidance_scale=2.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("controlled"), objective="rectified_flow")


@pytest.fixture(scope="module")
def control(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A control of the checkpoint that shows."""
    network, pipeline = load_checkpoint(checkpoint, dtype=torch.float32)
    tensors = random_control(network, 1).tensors
    own = Control(tensors=tensors, condition=EDGES, base=str(checkpoint), base_fingerprint=checkpoint_fingerprint(checkpoint))
    return save_control_checkpoint(tmp_path_factory.mktemp("control") / "run", own, network.config, pipeline)


def opened(checkpoint: Path, control: Path, scale: float = 1.0, *, weights: Weights = "full") -> Pipeline:
    return open_pipeline(checkpoint, runtime=replace(RUNTIME, weights=weights), control=ControlChoice(str(control), scale))


def request(image: Image.Image | None, **options: Any) -> GenerationRequest:
    return GenerationRequest(prompts=("a red owl", "key"), sampling=SAMPLING, control_image=image, **options)


def drawn(pipeline: Pipeline, asked: GenerationRequest) -> torch.Tensor:
    return torch.stack([one.latents for one in pipeline(asked)])


def test_images_follow_the_edges_of_a_picture_at_the_size_that_is_drawn(checkpoint: Path, control: Path) -> None:
    pipeline, plain = opened(checkpoint, control), open_pipeline(checkpoint, runtime=RUNTIME)
    found = drawn(pipeline, request(PICTURE, compute_edges=True))
    without = drawn(plain, request(None))
    assert (found - without).abs().max() > 0.05
    scaled = PICTURE.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS, box=(20, 0, 70, 50))
    edges = Image.fromarray(edge_map(np.asarray(scaled)))
    torch.testing.assert_close(drawn(pipeline, request(edges)), found, rtol=1e-4, atol=1e-4)
    vae = pipeline.parts.vae.get()
    pixels = torch.from_numpy(np.asarray(edges.convert("RGB"), dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    latents = vae.encode(pixels).sample(vae.scale, generator=None)
    torch.testing.assert_close(drawn(pipeline, request(None, control_latents=latents)), found, rtol=1e-4, atol=1e-4)
    two = torch.cat([latents, torch.zeros_like(latents)])
    mixed = drawn(pipeline, request(None, control_latents=two))
    torch.testing.assert_close(mixed[0], found[0], rtol=1e-4, atol=1e-4)
    assert (mixed[1] - found[1]).abs().max() > 0.01
    nothing = drawn(opened(checkpoint, control, 0.0), request(edges))
    torch.testing.assert_close(nothing, without, rtol=1e-4, atol=1e-4)
    wide = drawn(pipeline, request(PICTURE, compute_edges=True, height=24, width=40))
    assert wide.shape[2:] == (12, 20)


def test_weights_in_8_bits_have_the_control_too(checkpoint: Path, control: Path) -> None:
    whole = drawn(opened(checkpoint, control), request(PICTURE, compute_edges=True))
    quantised = drawn(opened(checkpoint, control, weights="int8"), request(PICTURE, compute_edges=True))
    assert 0 < (whole - quantised).abs().mean() < 0.1 * whole.abs().mean()


def test_what_does_not_go_together_is_told(checkpoint: Path, control: Path) -> None:
    pipeline, plain = opened(checkpoint, control), open_pipeline(checkpoint, runtime=RUNTIME)
    for one, asked, words, setting in [
        (plain, request(PICTURE), "a control image is for a network with a control: name it", "control"),
        (pipeline, request(PICTURE), "the control image is in colour: have its edges computed", "compute_edges"),
        (pipeline, request(None), "follows a control image: give one, or leave the control out", "control_image"),
        (pipeline, request(None, control_latents=torch.zeros(3, 4, 16, 16)), "control_latents: expected", ""),
    ]:
        with pytest.raises(UserError, match=words) as error:
            one(asked)
        assert error.value.setting == setting
    with pytest.raises(UserError, match="compute_edges: expected with a control image alone"):
        request(None, compute_edges=True)
    network, config = load_checkpoint(checkpoint)
    unknown = Control(tensors=random_control(network, 1).tensors)
    save_control_checkpoint(control.parent / "unknown", unknown, network.config, config)
    with pytest.raises(
        UserError, match="trained on images that its files do not name, not on the edges .* give an image as in"
    ):
        opened(checkpoint, control.parent / "unknown")(request(PICTURE, compute_edges=True))


def test_the_command_draws_once_and_records_the_control(
    checkpoint: Path, control: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PICTURE.save(tmp_path / "photo.png")
    arguments = ["--checkpoint", str(checkpoint), "--prompt", "a red owl", "--num_inference_steps", "1", "--dtype", "float32"]
    arguments += ["--out", str(tmp_path / "owl.png")]
    controlled = ["--control", f"{control}:0.5", "--control_image", str(tmp_path / "photo.png"), "--compute_edges", "true"]

    def run(*more: str) -> int:
        return run_command(GenerateConfig, main, prog="python -m model.generate", example="…", argv=[*arguments, *more])

    assert run(*controlled) == 0
    assert f" + 0.5 x {control}" in capsys.readouterr().out
    with Image.open(tmp_path / "owl.png") as image:
        image.load()
        settings = json.loads(image.text["settings"])  # type: ignore[attr-defined]
    assert settings["control"] == {"control": str(control), "scale": 0.5, "fingerprint": settings["control"]["fingerprint"]}
    assert settings["compute_edges"] is True and len(settings["control_image"]) == 16
    assert run(*controlled) == 0 and "0 images drawn" in capsys.readouterr().out
    PICTURE.convert("L").save(tmp_path / "photo.png")
    assert run(*controlled[:-1], "false") == 0 and "1 image drawn" in capsys.readouterr().out  # another control image
    assert run(*controlled[:2]) == 2 and "expected --control with --control_image" in capsys.readouterr().err
    assert run("--control", str(control), "--control_image", str(tmp_path / "none.png")) == 2
    assert (
        "none.png cannot be read (No such file or directory): give an image file (--control_image)" in capsys.readouterr().err
    )
