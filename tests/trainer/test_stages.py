"""Stages follow each other, each from what the one before left; what is missing or does not fit is said with what to do."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from foundry.errors import UserError
from model.formats.checkpoint import PartConfig, load_checkpoint, read_pipeline_config
from tests.model.tiny_parts import save_tiny_vae, tiny_vae
from tests.trainer.tiny_training import newest_of, tiny_config, write_store
from trainer import fit, tensorboard
from trainer.config.data import DataConfig
from trainer.config.ladder import Rung
from trainer.config.network import NetworkConfig
from trainer.monitoring.run_folder import read_metrics
from trainer.stages import STAGES

PAPER_IMAGES = {"pixel": 307_200_000, "alignment": 1_708_800_000, "aesthetic": 1_025_280_000 + 256_000_000 + 6_144_000}


def test_stages_have_the_papers_values() -> None:
    stages = {name: stage() for name, stage in STAGES.items()}
    assert {name: stage.images for name, stage in stages.items()} == PAPER_IMAGES
    assert [rung.resolution for rung in stages["aesthetic"].ladder] == [256, 512, 1024]
    assert {stage.optim.lr for stage in stages.values()} == {2e-5}
    network = stages["alignment"].network.dit_config(conditioning="text", sample_size=32, in_channels=4, learned_variance=True)
    assert (network.width, network.depth, network.num_heads, network.patch_size) == (1152, 28, 16, 2)


def test_three_stages_in_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = tmp_path / "features"
    for stage, resolution in [("pixel", 16), ("alignment", 16), ("aesthetic", 16), ("aesthetic", 32)]:
        write_store(features, stage=stage, resolution=resolution)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"features: {features}\nrun_dir: {tmp_path / 'runs'}\ndevice: cpu\ncompile: false\nprecision: float32\n"
        "ladder: [{resolution: 16, images: 8, batch_size: 4}]\n"
        "network: {width: 24, depth: 2, num_heads: 2}\n"
        "watch: {sample_every_images: 0, validate_every_images: 0}\n"
    )
    assert fit.run(["--stage", "all", "--config", str(config)]) == 0
    output = capsys.readouterr().out
    assert "alignment: starts from" in output and "runs/pixel/checkpoints/000000000008" in output
    assert "aesthetic: done; 8 images seen" in output
    taller = "[{resolution: 16, images: 8, batch_size: 4}, {resolution: 32, images: 4, batch_size: 2}]"
    assert fit.run(["--stage", "aesthetic", "--config", str(config), "--ladder", taller]) == 0
    network, pipeline = load_checkpoint(tmp_path / "runs" / "aesthetic" / "checkpoints" / "000000000012")
    assert (network.config.sample_size, network.config.position_scale, pipeline.resolution) == (16, 2.0, 32)
    assert network.config.conditioning == "text"


def test_all_stages_may_encode_captions_online_though_the_first_has_none(tmp_path: Path) -> None:
    write_store(tmp_path / "features", stage="pixel")
    assert fit.main(tiny_config(tmp_path, stage="pixel", images=4, online=True)) == 0


def test_all_stages_do_not_start_from_one_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit.run(["--stage", "all", "--init_from", "dit-xl"]) == 2
    assert "no stage would follow the one before; give it to the first one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("--seed", "-1", "seed must be 0 or more"),
        ("--watch.sample_steps", "0", "watch.sample_steps must be 1 to 1000"),
        ("--watch.guidance_scale", "-0.5", "watch.guidance_scale must be 0 or more"),
    ],
)
def test_what_would_fail_later_is_refused_at_once(
    setting: str, value: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit.run(["--stage", "pixel", setting, value]) == 2
    assert words in capsys.readouterr().err


def test_a_file_says_something_of_each_stage_and_flags_go_over_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "optim: {lr: 0.5, warmup_steps: 7}\nstages: {pixel: {optim: {lr: 0.25}, seed: 3}, aesthetic: {seed: 4}}\n"
    )

    def printed(*arguments: str) -> dict[str, Any]:
        assert fit.run([*arguments, "--print_config"]) == 0
        values: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
        return values

    pixel = printed("--stage", "pixel", "--config", str(config))
    assert (pixel["optim"]["lr"], pixel["optim"]["warmup_steps"], pixel["seed"], pixel["stage"]) == (0.25, 7, 3, "pixel")
    assert pixel["conditioning"] == "class"
    alignment = printed("--stage", "alignment", f"--config={config}")
    assert (alignment["optim"]["lr"], alignment["seed"]) == (0.5, 0)
    assert printed("--stage", "aesthetic", "--config", str(config), "--seed", "9")["seed"] == 9
    config.write_text("stages: {pixels: {seed: 3}}")
    assert fit.run(["--stage", "pixel", "--config", str(config)]) == 2
    assert "expected pixel, alignment, aesthetic, few_steps, found pixels" in capsys.readouterr().err


def test_a_stage_without_its_predecessor_names_the_command(tmp_path: Path) -> None:
    write_store(tmp_path / "features")
    with pytest.raises(UserError, match=r"python -m trainer\.fit --stage pixel, or give a checkpoint, or scratch"):
        fit.main(tiny_config(tmp_path, follows="pixel", init_from=None))
    assert not (tmp_path / "runs").exists()


def test_missing_features_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"trainer\.precompute --dataset DATASET .* --stage alignment --resolution 16 "
        r"--vae\.name VAE --text_encoder\.name TEXT_ENCODER\)",
    ):
        fit.main(tiny_config(tmp_path))
    with pytest.raises(UserError, match=r"--stage alignment --resolution 16 --vae\.name VAE --captions none\)$") as found:
        fit.main(tiny_config(tmp_path, conditioning="class", online=True))
    assert "--text_encoder" not in str(found.value).partition("(for this stage")[2]


def test_features_of_another_encoder_are_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "features")
    config = tiny_config(tmp_path, images=8)
    assert fit.main(config) == 0
    write_store(tmp_path / "others", text_encoder=PartConfig(name="another", fingerprint="x"))
    other = replace(config, features=str(tmp_path / "others"), run_dir=str(tmp_path / "other"), init_from=config.run_folder)
    with pytest.raises(UserError, match=r"trained with the text encoder nowhere \(t\), .* come from another \(x\)") as found:
        fit.main(other)
    assert str(found.value).endswith("--resolution 16 --vae.name nowhere --text_encoder.name nowhere")
    write_store(tmp_path / "wider", latent_channels=3)
    with pytest.raises(UserError, match="in_channels 4 and 3"):
        fit.main(replace(other, features=str(tmp_path / "wider")))


def test_features_of_another_scale_are_refused(tmp_path: Path) -> None:
    scales = {"once": 0.7, "other": 0.9}
    for name, scale in scales.items():
        vae = tiny_vae(save_tiny_vae(tmp_path / f"vae-{name}", scaling_factor=scale))  # the same weights
        part = PartConfig(name=f"vae-{name}", fingerprint=vae.fingerprint())
        write_store(tmp_path / name, vae=part, scaling_factor=scale)
    config = tiny_config(tmp_path, images=8, features=str(tmp_path / "once"))
    assert fit.main(config) == 0
    other = replace(config, features=str(tmp_path / "other"), run_dir=str(tmp_path / "next"), init_from=config.run_folder)
    with pytest.raises(UserError, match=r"trained with the VAE vae-once .* come from vae-other"):
        fit.main(other)
    with pytest.raises(UserError, match=r"trained with the VAE vae-once"):
        fit.main(replace(config, features=str(tmp_path / "other"), ladder=(Rung(resolution=16, images=16, batch_size=4),)))


def test_a_network_keeps_its_sizes_and_gains_sizes_without_effect(tmp_path: Path) -> None:
    write_store(tmp_path / "features")
    config = tiny_config(tmp_path, images=8)
    assert fit.main(config) == 0
    start = replace(config, run_dir=str(tmp_path / "next"), init_from=config.run_folder)
    with pytest.raises(UserError, match="width 48 and 24"):
        fit.main(replace(start, network=NetworkConfig(width=48)))
    micro = replace(
        start, network=NetworkConfig(micro_conditioning=True), ladder=(Rung(resolution=16, images=4, batch_size=4),)
    )
    assert fit.main(micro) == 0
    assert load_checkpoint(newest_of(micro))[0].config.micro_conditioning
    first = [
        read_metrics(Path(one.run_folder))[0]["loss"]
        for one in (micro, replace(start, run_dir=str(tmp_path / "plain")))
        if fit.main(one) == 0
    ]
    assert first[0] == pytest.approx(first[1], rel=1e-5)


def test_a_training_by_the_ratio_of_images_resumes_by_it_alone(tmp_path: Path) -> None:
    """Checkpoints that do not record the ratio were trained by that of the image."""
    write_store(tmp_path / "features")
    config = tiny_config(tmp_path, images=8, network=NetworkConfig(width=24, depth=2, num_heads=2, micro_conditioning=True))
    assert fit.main(replace(config, data=DataConfig(aspect_ratio="image"))) == 0
    position = newest_of(config) / "position.json"
    values = json.loads(position.read_text())
    assert values.pop("aspect_ratio") == "image"
    position.write_text(json.dumps(values))
    longer = replace(config, ladder=(Rung(resolution=16, images=16, batch_size=4),))
    with pytest.raises(
        UserError, match=r"is of another training \(data.aspect_ratio image then, bucket now\): use its settings"
    ):
        fit.main(longer)
    assert fit.main(replace(longer, data=DataConfig(aspect_ratio="image"))) == 0


def test_a_start_from_captions_that_were_cleaned_otherwise_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "features")
    config = tiny_config(tmp_path, images=4)
    assert fit.main(config) == 0 and "cleaning" not in capsys.readouterr().out
    path = newest_of(config) / "pipeline.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"caption_cleaning": "thorough"}))
    assert fit.main(replace(config, run_dir=str(tmp_path / "next"), init_from=config.run_folder)) == 0
    assert "the features' captions had lower cleaning, those that" in (said := capsys.readouterr().out)
    assert "make features with text_encoder.cleaning thorough" in said
    assert read_pipeline_config(newest_of(replace(config, run_dir=str(tmp_path / "next")))).caption_cleaning == "lower"


def test_a_checkpoint_says_what_it_was_trained_with(tmp_path: Path) -> None:
    write_store(tmp_path / "features", licence="CC0")
    config = tiny_config(tmp_path, images=4, licence="Apache-2.0")
    assert fit.main(config) == 0
    pipeline = read_pipeline_config(newest_of(config))
    assert (pipeline.text_encoder.fingerprint, pipeline.vae.fingerprint, pipeline.resolution) == ("t", "v", 16)
    assert pipeline.licence == "Apache-2.0; CC0"
    assert (Path(config.run_folder) / "config.yaml").is_file()


def test_out_of_memory_names_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("trainer.training.loop.train", exhausted)
    with pytest.raises(UserError, match="gradient_checkpointing, or fewer device_tokens than 96"):
        fit.main(tiny_config(tmp_path, device_tokens=96))


def test_a_batch_that_workers_cannot_share_is_refused(tmp_path: Path) -> None:
    from trainer.training.start import check_workers

    with pytest.raises(UserError, match="batch of 4 images cannot be shared by 3 workers: give a multiple, as 3"):
        check_workers(tiny_config(tmp_path), 3)


def test_tensorboard_reads_the_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_store(tmp_path / "features")
    config = tiny_config(tmp_path, images=20)
    assert fit.main(config) == 0
    assert tensorboard.main(tensorboard.TensorBoardConfig([config.run_folder])) == 0
    events = EventAccumulator(f"{config.run_folder}/tensorboard")
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    expected = {row["images_seen"]: row["loss"] for row in read_metrics(Path(config.run_folder)) if row["kind"] == "train"}
    assert losses == pytest.approx(expected)
    assert len(events.Scalars("validation/loss_of_band_3")) == 1
