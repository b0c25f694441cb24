"""A plan of a whole project: its sums by hand, its steps in their order, and what it does not know."""

import dataclasses
import json
from pathlib import Path

import pytest

from foundry.command_line import run_command
from trainer.monitoring.gpus import GPUS
from trainer.plan import main
from trainer.planning.config import PlanConfig, ProjectAssumptions
from trainer.planning.encoding import t5_bytes, t5_flops
from trainer.planning.estimate import plan
from trainer.planning.project import captions_per_s, kg_co2, project_costs

FIT = {"ladder": [{"resolution": 64, "images": 6400, "batch_size": 64}], "network": {"width": 48, "depth": 2, "num_heads": 4}}


@pytest.fixture
def config(tmp_path: Path) -> PlanConfig:
    (tmp_path / "fit.yaml").write_text(json.dumps(FIT))  # JSON is YAML
    return PlanConfig(
        stage="alignment",
        fit_config=str(tmp_path / "fit.yaml"),
        num_gpus=4,
        num_images=1000,
        project=True,
        assume=ProjectAssumptions(kept=0.5, image_kb=200, captions_per_image=2),
    )


def test_each_step_is_counted_by_its_images(config: PlanConfig) -> None:
    rungs = plan(config)
    captions, scores, features, training = project_costs(rungs, config)
    assert [step.name for step in (captions, scores)] == ["captions", "scores"]
    assert [step.name for step in (features, training)] == ["features of alignment", "training of alignment"]
    assert captions.num_images == scores.num_images == 2000, "half of them is kept"
    assert captions.gpu_hours == pytest.approx(4000 / captions_per_s(config) / 3600)
    assert captions.read_bytes == 2 * scores.read_bytes == 2 * 2000 * 200_000
    assert rungs[0].encoding is not None
    assert features.gpu_hours == rungs[0].encoding.gpu_hours and features.read_bytes == 1000 * 200_000
    assert training.num_images == 6400 and training.gpu_hours == 24 * rungs[0].gpu_days
    assert training.read_bytes == pytest.approx(6400 * (rungs[0].disk.latents + rungs[0].disk.captions_int8) / 1000)


def test_a_score_costs_the_operations_of_a_vit_l() -> None:
    """open_clip's own count of ViT-L-14 is 87.7 GMAC for an image and a text: this one leaves out what is no block."""
    config = PlanConfig(num_images=1_000_000, stage="alignment", utilisation=1.0, gpu="a100")
    scores = project_costs(plan(config), config)[1]
    assert scores.gpu_hours is not None
    assert scores.gpu_hours * 3600 * config.device.peak_flops / 1e6 == pytest.approx(2 * 87.7e9, rel=0.05)


def test_the_speed_of_a_captioner_scales_with_the_gpu_and_the_model(config: PlanConfig) -> None:
    of_source = ProjectAssumptions(captioner_parameters=8e9)
    assert captions_per_s(dataclasses.replace(config, gpu="h200", assume=of_source)) == 20
    on_v100 = dataclasses.replace(config, gpu="v100", assume=ProjectAssumptions())
    assert 1.8 <= captions_per_s(on_v100) <= 3.0, "the authors of PixArt-alpha had 1.8 to 2.0 with LLaVA-7B"
    given = ProjectAssumptions(captioner_images_per_s=5.5)
    assert captions_per_s(dataclasses.replace(config, assume=given)) == 5.5


def test_co2_is_energy_times_the_grids_intensity(config: PlanConfig) -> None:
    clean = dataclasses.replace(config, gpu="a100", assume=ProjectAssumptions(pue=1.0, grams_co2_per_kwh=100))
    assert kg_co2(10, clean) == pytest.approx(10 * 0.4 * 0.1)
    assert all(gpu.watts for gpu in GPUS.values())


def test_a_stage_of_classes_alone_needs_no_captions(config: PlanConfig) -> None:
    pixel = dataclasses.replace(config, stage="pixel")
    assert [step.name for step in project_costs(plan(pixel), pixel)] == ["features of pixel", "training of pixel"]


def test_the_table_and_the_json_tell_the_same(config: PlanConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(config) == 0
    table = capsys.readouterr().out
    assert "The whole project, from images to model" in table and "50% are kept" in table
    assert "Not in it: validation, samples." in table
    assert main(dataclasses.replace(config, json=True)) == 0
    found = json.loads(capsys.readouterr().out)["project"]
    assert [step["name"] for step in found] == ["captions", "scores", "features of alignment", "training of alignment"]
    assert main(dataclasses.replace(config, project=False)) == 0
    assert "features (see --project)" in capsys.readouterr().out


def test_encoders_that_a_plan_does_not_know_are_left_open(config: PlanConfig, capsys: pytest.CaptureFixture[str]) -> None:
    unknown = dataclasses.replace(config, caption_width=1024)
    assert project_costs(plan(unknown), unknown)[2].gpu_hours is None
    assert main(unknown) == 0
    assert "?: no estimate for other encoders" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--assume.kept", "0"], "assume.kept must be above 0 and at most 1, found 0"),
        (["--assume.pue=0.9"], "assume.pue must be at least 1, found 0.9"),
        (["--assume.image_kb=-1"], "assume.image_kb must be above 0, found -1"),
    ],
)
def test_wrong_assumptions_are_named(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(PlanConfig, main, prog="python -m trainer.plan", example="", argv=arguments) == 2
    assert words in capsys.readouterr().err


def test_captions_that_are_encoded_in_the_training_are_in_its_plan(config: PlanConfig, tmp_path: Path) -> None:
    stored = plan(config)[0]
    (tmp_path / "fit.yaml").write_text(json.dumps(FIT | {"online": True}))
    online = plan(config)[0]
    assert [cost.name for cost in online.techniques] == ["online captions"]
    assert online.flops - stored.flops == pytest.approx(6400 * t5_flops(config.caption_tokens))
    more = online.memory_as_set.memory.fixed - stored.memory_as_set.memory.fixed
    assert more == t5_bytes() == pytest.approx(9.5e9, rel=0.01)
