"""The validation loss of a checkpoint is the one that its training measured, and foreign features are refused."""

from pathlib import Path

import pytest

from foundry.command_line import run_command
from model.formats.checkpoint import PartConfig
from model.generation.pipeline_parts import RuntimeConfig
from tests.trainer.tiny_training import tiny_config, write_store
from trainer import evaluate
from trainer.evaluation.config import EvaluateConfig
from trainer.fit import main
from trainer.monitoring.run_folder import newest_checkpoint, read_metrics
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
    assert found.bands == pytest.approx(row["bands"], rel=1e-5, nan_ok=True)


def test_features_of_another_encoder_are_refused_before_anything_is_drawn(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = write_store(tmp_path / "other", vae=PartConfig(name="elsewhere", fingerprint="another"))
    checkpoint, out = newest_checkpoint(trained / "runs" / "alignment"), tmp_path / "out"
    argv = ["--benchmark=tests.trainer.toy_benchmark", f"--checkpoint={checkpoint}", f"--out={out}", f"--features={store}"]
    assert run_command(EvaluateConfig, evaluate.main, prog="python -m trainer.evaluate", example="", argv=argv) == 2
    assert "trained with the vae nowhere" in capsys.readouterr().err
