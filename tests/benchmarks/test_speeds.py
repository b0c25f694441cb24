"""Figures of speed and size compare what they say: values as the original holds them, one process per core, everything switched
on."""

import json
from pathlib import Path

import pytest

from benchmarks import train_loop
from benchmarks.captioning import run_dtype
from benchmarks.feature_making import SIDE_PX, making_dtype
from benchmarks.features import FeaturesBenchConfig, storage_figures
from benchmarks.loader import LoaderBenchConfig, drawing_figures, loading_figures
from benchmarks.precompute_reading import PrecomputeReadingConfig, mix_figures, reading_figures
from benchmarks.staged_config import StagedTrainingConfig
from benchmarks.staged_training import trained_dtypes
from benchmarks.train_loop import StepClock, StepTimes, TrainLoopConfig
from foundry.storage.folder import Folder
from foundry.storage.run_record import RunRecord
from tests.trainer.tiny_training import write_store


def test_the_original_layout_is_compressed_with_values_as_encoders_give_them(tmp_path: Path) -> None:
    """Half of a float32 that holds a bf16 is zeros. With float32 noise, which no such encoder gives, the ratio would be 2.8."""
    figures = storage_figures(FeaturesBenchConfig(count=6, batch_size=3, rounds=1), tmp_path)
    assert figures["bytes_original"] == 120 * 4096 * 4
    assert figures["bytes_original_compressed"] < 0.55 * figures["bytes_original"]
    assert figures["storage_ratio"] == figures["bytes_original_compressed"] / figures["bytes_bf16"]
    assert 1.2 < figures["storage_ratio"] < 1.7
    assert min(figures[name] for name in ("read_ratio", "read_ratio_uncompressed", "read_ratio_int8")) > 0


def test_the_number_format_is_read_from_the_run_that_was_measured(tmp_path: Path) -> None:
    features = tmp_path / "making" / "features-2-0"
    write_store(features, resolution=SIDE_PX, vae_dtype="float32", text_encoder_dtype="float32", shapes=((16, 16),))
    assert making_dtype(tmp_path) == "float32"
    record = features / "alignment" / str(SIDE_PX) / "features.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"vae_dtype": "bfloat16"}))
    assert making_dtype(tmp_path) == "VAE bfloat16, T5 float32"
    staged = StagedTrainingConfig(out=str(tmp_path / "staged"))
    assert trained_dtypes(staged) is None
    for name, precision in (("single", "float32"), ("per_block", "bfloat16"), ("dense", "float32")):
        folder = tmp_path / "staged" / "trainings" / name / "0" / "alignment"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(f"precision: {precision}\n")
    assert trained_dtypes(staged) == "bfloat16, float32"
    settings = {"generation": {"dtype": "float32"}}
    RunRecord.new(settings=settings, images=["scenes"], licence="").create(Folder(str(tmp_path / "run")))
    assert run_dtype(tmp_path / "run") == "float32"


def test_the_overhead_of_the_loop_counts_what_happens_between_steps() -> None:
    clock = StepClock(rows=[StepTimes(ended=ended, core_s=0.75) for ended in (10.0, 11.0, 12.0, 15.0, 16.0)])
    clock.events = {
        "validate": [(10.2, 9.0), (12.0, 1.0)],
        "draw_samples": [(13.0, 0.75)],
        "write_checkpoint": [(13.75, 0.25), (16.0, 7.0)],
    }
    figures = clock.figures(TrainLoopConfig(steps=3, warmup=2, every_steps=2, batch_size=4))
    assert figures == pytest.approx(
        {
            "loop_overhead": 1 - 3 * 0.75 / 5,
            "step_overhead": 0.25,
            "step_s": 1.0,
            "core_s": 0.75,
            "validation_s": 1.0,
            "samples_s": 0.75,
            "checkpoint_s": 0.25,
            "images_per_s": 12 / 5,
        }
    )


@pytest.mark.slow
def test_the_loop_is_measured_with_validation_samples_and_checkpoints_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_loop.main(TrainLoopConfig(width=64, depth=1, batch_size=2, steps=4, warmup=1, every_steps=2)) == 0
    printed = capsys.readouterr().out
    assert printed.count("validation loss") == 2 and printed.count(": samples in") == 2
    figures = json.loads(printed.splitlines()[-1])
    assert min(figures[name] for name in ("validation_s", "samples_s", "checkpoint_s", "core_s", "step_s")) > 0
    assert figures["core_s"] < figures["step_s"] and 0 < figures["step_overhead"] < figures["loop_overhead"] < 1
    assert figures["dtype"] in ("bfloat16", "float32")


def test_reading_counts_each_byte_of_a_source_once(tmp_path: Path) -> None:
    config = PrecomputeReadingConfig(images=300, image_kb=200, hash_order_images=20, tars=50, images_per_tar=200)
    figures = reading_figures(config, tmp_path)
    assert figures["mb_per_image"] == pytest.approx(0.2, rel=0.05), "though two units share each row group"
    assert figures["disk_mb_per_image"] == pytest.approx(0.2, rel=0.05)
    assert figures["hash_order_mb_per_image"] > 5 * figures["mb_per_image"]
    assert min(figures.values()) > 0


def test_the_mix_of_units_is_near_that_of_independent_draws(tmp_path: Path) -> None:
    figures = mix_figures(PrecomputeReadingConfig(tars=40, images_per_tar=250), tmp_path)
    assert 25 < figures["sources_per_unit"] <= figures["uniform_sources_per_unit"] < 40
    assert figures["sources_per_window"] > 35 and figures["largest_share"] < 0.15


def test_loading_counts_what_one_rank_reads(tmp_path: Path) -> None:
    config = LoaderBenchConfig(count=24, batch_size=32, ranks=4, images=10_240)
    figures = loading_figures(config, tmp_path) | drawing_figures(config)
    assert min(figures.values()) > 0
    bytes_int8, bytes_bf16 = (figures[f"gb_per_s_{name}"] / figures[f"images_per_s_{name}"] for name in ("int8", "bf16"))
    assert 1.8 < bytes_bf16 / bytes_int8 < 2.2
