"""The promise of docs/generating.md: XL at 1024 px in 8 GB of GPU memory, part by part."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foundry.command_line import run_command
from model.diffusion import Diffusion
from model.dit import Captions
from model.dit_config import PRESETS
from model.formats.checkpoint import PipelineConfig
from model.formats.json_files import write_json
from model.generate import GenerateConfig, main
from model.generation.memory import OVERHEAD_BYTES, phase_bytes
from model.generation.pipeline import open_pipeline
from model.generation.pipeline_parts import RuntimeConfig
from model.generation.request import GenerationRequest
from model.sampling import Conditioning, SamplingConfig, draw_noise, image_generators, sample_latents
from tests.model.real_memory import allocated_peak
from tests.model.tiny_parts import CAPTION_WIDTH, save_tiny_checkpoint, tiny_dit

GPU_BYTES = 8_000_000_000
XL_1024 = dataclasses.replace(PRESETS["XL/2"], sample_size=128, position_scale=2.0, micro_conditioning=True)


def test_xl_at_1024_fits_in_8_gb_part_by_part() -> None:
    phases = phase_bytes(XL_1024, height=1024, width=1024)
    assert phases["denoise"].weights == 2 * 611_349_152 and phases["decode"].weights == 2 * 83_653_863
    assert 5.8e9 < phases["encode"].weights < 6.0e9
    assert all(phase.total < GPU_BYTES for phase in phases.values()), phases
    # That takes the stages and the 8 bits: all at once, or T5 in bf16, would not fit.
    assert sum(phase.weights for phase in phases.values()) + phases["encode"].activations + OVERHEAD_BYTES > GPU_BYTES
    assert phase_bytes(XL_1024, height=64, width=64, quantisation="none")["encode"].total > GPU_BYTES
    assert 4.2e9 < phase_bytes(XL_1024, height=64, width=64, quantisation="bitsandbytes_4bit")["encode"].weights < 4.4e9
    wide = phase_bytes(XL_1024, height=512, width=2048, batch_size=4)
    assert phases["denoise"].activations < wide["denoise"].total < GPU_BYTES


def test_all_parts_of_xl_at_1024_fit_in_6_gb_at_once_in_4_bits() -> None:
    phases = phase_bytes(XL_1024, height=1024, width=1024, quantisation="int4", weights="int4")
    assert 2.8e9 < phases["encode"].weights < 3.0e9 and 0.35e9 < phases["denoise"].weights < 0.42e9
    resident = sum(phase.weights for phase in phases.values())
    assert resident + max(phase.activations for phase in phases.values()) + OVERHEAD_BYTES < 6_000_000_000
    eight = phase_bytes(XL_1024, height=64, width=64, weights="int8")["denoise"].weights
    assert phases["denoise"].weights < eight < 0.6 * 2 * 611_349_152


def test_the_computed_activations_are_those_of_a_real_run() -> None:
    """Same network, three steps of sampling, by torch's allocator: neither too low nor more than twice too high."""
    dit = tiny_dit().bfloat16()
    captions = Captions(tokens=torch.randn(2 * 20, CAPTION_WIDTH).bfloat16(), lengths=torch.tensor([20, 20]))
    noise = draw_noise(image_generators([0, 1]), (4, 64, 64))
    conditioning, config = Conditioning(captions=captions, negative_captions=captions), SamplingConfig(num_inference_steps=3)
    measured = allocated_peak(lambda: sample_latents(dit, Diffusion(), conditioning, noise=noise, config=config))
    vae = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",), "block_out_channels": (32,)}
    t5 = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2, "vocab_size": 100}
    computed = phase_bytes(dit.config, height=64, width=64, batch_size=2, text_encoder=t5, vae=vae)["denoise"]
    assert computed.weights == sum(2 * parameter.numel() for parameter in dit.parameters())
    assert measured <= computed.activations <= 2 * measured


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_checkpoint(tmp_path_factory.mktemp("memory"), objective="rectified_flow"))


def run(*arguments: str, checkpoint: str) -> int:
    argv = [f"--checkpoint={checkpoint}", *arguments]
    return run_command(GenerateConfig, main, prog="python -m model.generate", example="…", argv=argv)


def test_a_plan_tells_the_memory_and_draws_nothing(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--prompt", "owl", "--out", str(tmp_path / "x.png"), "--plan", "--height", "64"]
    totals = []
    for more in ([], ["--weights", "int4"], ["--staged"]):
        assert run(*options, *more, checkpoint=checkpoint) == 0
        said = capsys.readouterr().out
        assert said.startswith("64 x 32 px, computed for bfloat16") and "assumed" not in said
        totals.append(float(re.findall(r"needs ([\d.]+) GB", said)[0]))
    assert all(1 <= total < 1.1 for total in totals)  # networks of a few thousand weights: the overhead alone
    assert not (tmp_path / "x.png").exists()


def test_a_plan_for_parts_that_are_not_here_says_what_it_assumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "xl"
    (folder / "transformer").mkdir(parents=True)
    write_json(folder / "transformer" / "config.json", XL_1024.to_dict())
    write_json(folder / "pipeline.json", PipelineConfig(objective="diffusion", resolution=1024).to_dict())
    needed = {}
    for name, more in {
        "whole": [],
        "int4": ["--weights", "int4", "--quantisation", "int4", "--tiled_vae"],
        "staged": ["--staged", "--weights", "int8", "--quantisation", "int4", "--tiled_vae"],
    }.items():
        options = ["--prompt", "owl", "--out", str(tmp_path / "x.png"), "--batch_size", "1", "--plan", *more]
        assert run(*options, checkpoint=str(folder)) == 0
        said = capsys.readouterr().out
        assert "assumed: T5-XXL and Stable Diffusion's VAE" in said and said.startswith("1024 x 1024 px")
        needed[name] = float(re.findall(r"needs ([\d.]+) GB", said)[0])
    assert needed["whole"] > 11 and needed["int4"] < 6 and needed["staged"] < needed["int4"]


def test_memory_that_runs_out_halves_the_batch_and_changes_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawer = open_pipeline(save_tiny_checkpoint(tmp_path), runtime=RuntimeConfig(dtype="float32", batch_size=4))
    request = GenerationRequest(
        prompts=("a red owl", "a key"), num_images_per_prompt=3, sampling=SamplingConfig(num_inference_steps=2)
    )
    expected, sizes = drawer(request), list[int]()

    def at_most_one(transformer: Any, objective: Any, conditioning: Any, *, noise: torch.Tensor, **how: Any) -> torch.Tensor:
        sizes.append(len(noise))
        if len(noise) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sample_latents(transformer, objective, conditioning, noise=noise, **how)

    monkeypatch.setattr("model.generation.pipeline.sample_latents", at_most_one)
    found = drawer(request)
    assert sizes == [4, 2, 1, 1, 1, 1, 1, 1], "what memory holds is found out once"
    assert [one.seed for one in found] == [one.seed for one in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(np.asarray(ours.image, np.int16) - np.asarray(theirs.image, np.int16)).max() <= 1
