"""Networks of few steps: drawn as pipeline.json or their adapter says, and as diffusers draws what they are exported to."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, LCMScheduler, PixArtAlphaPipeline
from peft import PeftModel

from foundry.errors import UserError
from model.convert import ConvertConfig
from model.convert import main as convert
from model.dit_config import FewSteps
from model.formats.checkpoint import (
    checkpoint_fingerprint,
    load_checkpoint,
    read_pipeline_config,
    save_adapter_checkpoint,
    save_checkpoint,
)
from model.generation.drawing import image_values
from model.generation.pipeline import open_pipeline
from model.generation.pipeline_parts import RuntimeConfig
from model.generation.request import GenerationRequest
from model.lora.adapter import Adapter, LayerAdapter
from model.lora.settings import LoraChoice
from model.sampling import SamplingConfig
from tests.model.generation.test_pipeline import PROMPTS, SCALES, assert_same_images, our_images
from tests.model.tiny_parts import SIDE_PX, pipeline_config, save_tiny_t5, save_tiny_vae, tiny_dit

EXACT = RuntimeConfig(dtype="float32", batch_size=3)
CONSISTENCY = FewSteps(method="consistency", num_inference_steps=3, guidance_scale=4.5)
RECTIFICATION = FewSteps(method="rectification", num_inference_steps=3, guidance_scale=4.5)
CASES = [("diffusion", CONSISTENCY), ("rectified_flow", CONSISTENCY), ("rectified_flow", RECTIFICATION)]
OPTIONS: dict[str, Any] = {
    "output_type": "np",
    "use_resolution_binning": False,
    "clean_caption": False,
    "max_sequence_length": 20,
    "height": SIDE_PX,
    "width": SIDE_PX,
    "guidance_scale": 1.0,
}


def _checkpoint(folder: Path, objective: str, few_steps: FewSteps | None) -> Path:
    t5, vae = save_tiny_t5(folder / "t5"), save_tiny_vae(folder / "vae", scaling_factor=SCALES[objective])
    config = replace(pipeline_config(objective=objective, text_encoder=t5, vae=vae), few_steps=few_steps)
    return save_checkpoint(folder / "ours", tiny_dit(learned_variance=objective == "diffusion"), config)


def _export(source: Path, target: Any, out: Path) -> Path:
    assert convert(ConvertConfig(checkpoint=str(source), out=str(out), source="native", target=target)) == 0
    return out


def _their_images(pipeline: Any, **options: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 7)]
    return np.asarray(pipeline(prompt=list(PROMPTS), generator=generators, **OPTIONS | options).images)


@pytest.mark.parametrize(("objective", "few_steps"), CASES)
def test_images_are_those_of_diffusers_and_the_way_back_keeps_the_steps(
    tmp_path: Path, objective: str, few_steps: FewSteps
) -> None:
    checkpoint = _checkpoint(tmp_path, objective, few_steps)
    theirs = _export(checkpoint, "diffusers", tmp_path / "theirs")
    pipeline = PixArtAlphaPipeline.from_pretrained(theirs)
    assert isinstance(pipeline.scheduler, LCMScheduler if objective == "diffusion" else DPMSolverMultistepScheduler)
    request = GenerationRequest(prompts=PROMPTS, seed=7)
    steps: list[int] = []
    ours = our_images(
        open_pipeline(checkpoint, runtime=EXACT)(request, output="numpy", on_step=lambda step, *_: steps.append(step))
    )
    assert steps == [0, 1, 2]
    assert_same_images(ours, _their_images(pipeline, num_inference_steps=3))
    back = tmp_path / "back"
    assert convert(ConvertConfig(checkpoint=str(theirs), out=str(back), source="diffusers", target="native")) == 0
    assert read_pipeline_config(back).few_steps == few_steps


def test_a_lora_of_few_steps_is_sampled_so_here_and_in_diffusers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = _checkpoint(tmp_path, "rectified_flow", None)
    network, config = load_checkpoint(base)
    weight = network.state_dict()["blocks.0.attn.qkv.weight"]
    generator = torch.Generator().manual_seed(1)
    layer = LayerAdapter(
        down=torch.randn(2, weight.shape[1], generator=generator),
        up=torch.randn(len(weight), 2, generator=generator) / 8,
        alpha=2.0,
    )
    adapter = Adapter(
        layers={"blocks.0.attn.qkv": layer},
        base=str(base),
        base_fingerprint=checkpoint_fingerprint(base),
        few_steps=RECTIFICATION,
    )
    lora = save_adapter_checkpoint(tmp_path / "lora", adapter, network.config, replace(config, few_steps=RECTIFICATION))
    request = GenerationRequest(prompts=PROMPTS, seed=7)
    alone = our_images(open_pipeline(lora, runtime=EXACT)(request, output="numpy"))
    choice = [LoraChoice(str(lora))]
    added = our_images(open_pipeline(base, runtime=EXACT, lora=choice)(request, output="numpy"))
    assert np.array_equal(alone, added)
    (values, _) = image_values(str(base), request, EXACT.resolved(), lora=choice)
    assert (values["settings"]["sampler"], values["settings"]["num_inference_steps"]) == ("ddim", 3)
    assert values["settings"]["guidance_scale"] == 1.0
    pipeline = PixArtAlphaPipeline.from_pretrained(_export(base, "diffusers", tmp_path / "theirs"))
    capsys.readouterr()
    pipeline.transformer = PeftModel.from_pretrained(pipeline.transformer, _export(lora, "peft", tmp_path / "peft"))
    printed = capsys.readouterr().out
    (words,) = [line.split(" = ")[1] for line in printed.splitlines() if "sample it" in line]
    scheduler = eval(
        words.removesuffix("; no guidance (guidance_scale=1)"), {"DPMSolverMultistepScheduler": DPMSolverMultistepScheduler}
    )
    pipeline.scheduler = scheduler
    assert_same_images(alone, _their_images(pipeline, num_inference_steps=3))


def test_what_is_asked_for_is_taken_and_what_cannot_be_is_refused(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path, "rectified_flow", CONSISTENCY)
    pipeline = open_pipeline(checkpoint, runtime=EXACT)
    seen: list[float] = []
    sampling = SamplingConfig(num_inference_steps=4)
    pipeline(GenerationRequest(prompts=PROMPTS[:1], sampling=sampling), on_step=lambda _, t, __: seen.append(t))
    assert seen == pytest.approx([999, 749, 499, 249])  # lcm, at even times
    guided = SamplingConfig(guidance_scale=2.0, sampler="dpm-solver++")
    resolved = guided.resolved(CONSISTENCY)
    assert (resolved.sampler, resolved.num_steps, resolved.guided) == ("dpm-solver++", 3, True)
    plain = SamplingConfig().resolved()
    assert (plain.sampler, plain.num_inference_steps, plain.guidance_scale) == ("dpm-solver++", 20, 4.5)
    with pytest.raises(ValueError, match="few_steps: expected a method of consistency, rectification, 1 step or more"):
        FewSteps(method="consistency", num_inference_steps=0, guidance_scale=4.5)
    source = [LoraChoice(str(tmp_path / name)) for name in ("three", "four")]
    network, config = load_checkpoint(checkpoint)
    layer = LayerAdapter(down=torch.zeros(1, 48), up=torch.zeros(48, 1), alpha=1.0)
    for choice, steps in zip(source, (3, 4), strict=True):
        few_steps = replace(CONSISTENCY, num_inference_steps=steps)
        adapter = Adapter(layers={"blocks.0.attn.proj": layer}, few_steps=few_steps)
        save_adapter_checkpoint(choice.path, adapter, network.config, config)
    with pytest.raises(UserError, match="three and .*four are distilled to few steps differently: give one of them"):
        open_pipeline(checkpoint, runtime=EXACT, lora=source)
