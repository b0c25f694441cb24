"""The validation loss of a checkpoint is the one that its training measured, and other features are refused."""

import json
from pathlib import Path

import pytest

from foundry.command_line import run_command
from model.formats.checkpoint import PartConfig
from model.generation.pipeline_parts import RuntimeConfig
from tests.trainer.tiny_training import tiny_config, write_store
from trainer import evaluate, tensorboard
from trainer.config.running import WatchConfig
from trainer.evaluation.config import EvaluateConfig
from trainer.fit import main
from trainer.monitoring.run_folder import METRICS, newest_checkpoint, read_metrics
from trainer.monitoring.validation import validation_loss

RUNTIME = RuntimeConfig(device="cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    write_store(root / "features")
    assert main(tiny_config(root, images=20)) == 0
    return root


def test_it_equals_what_training_measured(trained: Path) -> None:
    checkpoint = newest_checkpoint(trained / "runs" / "alignment")
    found = validation_loss(str(checkpoint), str(trained / "features" / "alignment" / "16"), num_images=8, runtime=RUNTIME)
    (row,) = [row for row in read_metrics(trained / "runs" / "alignment") if row["kind"] == "validation"]
    assert found.loss == pytest.approx(row["loss"], rel=1e-5)
    assert [band and pytest.approx(band, rel=1e-5) for band in row["bands"]] == list(found.bands)


def test_a_band_without_samples_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two samples cannot fill four bands: the line has those that they are in, the row of metrics has null for the others."""
    write_store(tmp_path / "features")
    watch = WatchConfig(validate_every_images=8, validation_images=2, sample_every_images=0)
    config = tiny_config(tmp_path, images=8, watch=watch)
    assert main(config) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "validation loss" in line)
    assert "nan" not in line and 1 <= line.count("-") <= 2
    text = (Path(config.run_folder) / METRICS).read_text()
    row = next(row for row in map(json.loads, text.splitlines()) if row["kind"] == "validation")
    assert "NaN" not in text and row["bands"].count(None) == 4 - line.count("-")
    assert tensorboard.main(tensorboard.TensorBoardConfig([config.run_folder])) == 0


def test_features_of_another_encoder_are_refused_before_anything_is_drawn(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = write_store(tmp_path / "other", vae=PartConfig(name="elsewhere", fingerprint="another"))
    checkpoint, out = newest_checkpoint(trained / "runs" / "alignment"), tmp_path / "out"
    argv = ["--benchmark=tests.trainer.toy_benchmark", f"--checkpoint={checkpoint}", f"--out={out}", f"--features={store}"]
    assert run_command(EvaluateConfig, evaluate.main, prog="python -m trainer.evaluate", example="", argv=argv) == 2
    error = capsys.readouterr().err
    assert "trained with the vae nowhere" in error and "give features that were made with that one" in error
