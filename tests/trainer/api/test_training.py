"""Trainings, features, plans and evaluations from a notebook: the commands' own results, as objects."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from foundry.errors import UserError
from tests.trainer.tiny_training import tiny_config, write_store
from trainer import load_metrics, open_features, open_training, plan_training, precompute_features, train
from trainer.api.training import _read
from trainer.monitoring.run_folder import newest_checkpoint, read_metrics
from trainer.planning.estimate import plan
from trainer.stages import STAGES


def _options(root: Path, **changes: Any) -> dict[str, Any]:
    """A training of a second, as a notebook would write it."""
    config = asdict(tiny_config(root, images=16))
    names = ("stage", "features", "run_dir", "ladder", "init_from", "device", "precision", "compile")
    groups = {"network": {"width": 24, "depth": 2, "num_heads": 2}, "data": {"loader_threads": 1}}
    watch = {"every_steps": 1, "validate_every_images": 8, "validation_images": 8, "sample_every_images": 0}
    return {name: config[name] for name in names} | groups | {"watch": watch} | changes


def test_a_training_is_opened_with_its_metrics_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "features")
    training = train(**_options(tmp_path))
    assert training.folder == tmp_path / "runs" / "alignment"
    assert training.checkpoint == newest_checkpoint(training.folder) and training.checkpoint is not None
    rows = read_metrics(training.folder)
    found = training.metrics().rows()
    assert [{name: row[name] for name in own} for row, own in zip(found, rows, strict=True)] == rows
    assert {row["run"] for row in found} == {str(training.folder)}
    validation = load_metrics(training, kind="validation").df()
    assert validation["images_seen"].tolist() == [row["images_seen"] for row in rows if row["kind"] == "validation"]
    assert validation["loss"].tolist() == [row["loss"] for row in rows if row["kind"] == "validation"]
    spikes = load_metrics(training, kind="spike")
    assert len(spikes) == 0 and "no rows of the kind spike yet; there are train, validation" in spikes.notes[0]
    capsys.readouterr()
    assert train(**_options(tmp_path)).checkpoints == training.checkpoints
    assert "all 16 images are seen" in capsys.readouterr().out
    assert open_training(training).sample_grids() == {}


def test_options_go_over_the_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"seed": 3, "optim": {"lr": 0.5}, "stages": {"alignment": {"optim": {"warmup_steps": 7}}}}))
    recipe = STAGES["alignment"]()
    assert _read({"stage": "alignment"}) == recipe
    found = _read({"stage": "alignment", "config": path, "seed": 4, "optim": {"gradient_clip": 2.0}, "run_dir": str(tmp_path)})
    assert (found.seed, found.optim.lr, found.optim.warmup_steps, found.optim.gradient_clip) == (4, 0.5, 7, 2.0)
    assert found.ladder == recipe.ladder and found.optim.betas == recipe.optim.betas
    cheap = tmp_path / "runs" / "alignment"
    cheap.mkdir(parents=True)
    (cheap / "config.yaml").write_text(yaml.safe_dump({"recipe": "cheap"}))
    assert _read({"stage": "alignment", "run_dir": tmp_path / "runs"}).recipe == "cheap"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "all"}, "stage: expected one of pixel, alignment, aesthetic, few_steps, found all: train one stage"),
        ({"watch": {"every_step": 1}}, "unknown option watch.every_step; did you mean --watch.every_steps?"),
        ({"features": "nowhere"}, "nowhere"),
        ({"num_workers": 3}, "batch"),
    ],
)
def test_what_a_training_refuses_is_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_store(tmp_path / "features")
    with pytest.raises(UserError, match=message):
        train(**_options(tmp_path, **changes))


def test_folders_of_no_training_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "alignment").mkdir()
    (tmp_path / "alignment" / "metrics.jsonl").write_text('{"kind": "train", "images_seen": 4, "loss": 1}\n')
    with pytest.raises(UserError, match="has no metrics.jsonl: it has the trainings alignment: give the folder of a training"):
        load_metrics(tmp_path)
    with pytest.raises(UserError, match="is not the folder of a training: give RUN_DIR/<stage>"):
        open_training(tmp_path)
    with pytest.raises(UserError, match="give the folder of a training or several"):
        load_metrics()


def test_metrics_of_several_trainings_keep_their_columns_apart(tmp_path: Path) -> None:
    rows: dict[str, dict[str, Any]] = {
        "a": {"kind": "train", "images_seen": 4, "loss": 1, "mfu": None},
        "b": {"kind": "validation", "bands": [1.0, 2.5]},
    }
    for name, row in rows.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(f'{json.dumps({"images_seen": 8} | row)}\n{{"cut of')
    found = load_metrics(tmp_path / "a", tmp_path / "b")
    assert found.columns == ["run", "kind", "images_seen", "loss", "mfu", "bands"]
    assert [(row["images_seen"], row["loss"], row["bands"]) for row in found.rows()] == [(4, 1, None), (8, None, [1.0, 2.5])]


def test_features_are_opened_and_read(tmp_path: Path) -> None:
    from trainer import SampleRequest

    store = open_features(write_store(tmp_path / "features"))
    unit = next(iter(store.samples("train").values()))[0]
    batch = store.read([SampleRequest(unit=unit.unit, row=0, caption=0)])
    assert batch.texts == ["dense 0"] and batch.mean.shape[:2] == (1, 4)
    with pytest.raises(UserError, match="--vae.name .*missing"):
        precompute_features(dataset="d", out="o", stage="alignment")
    with pytest.raises(UserError, match="features"):
        open_features(tmp_path / "nothing")


def test_a_plan_has_the_figures_of_the_command() -> None:
    found = plan_training(stage="aesthetic", gpu="a100", num_gpus=8)
    rungs = plan(found.config)
    rows = found.rows()
    assert [(row["stage"], row["resolution"], row["gpu_days"]) for row in rows] == [
        (rung.stage, rung.resolution, rung.gpu_days) for rung in rungs
    ]
    assert rows[0]["days"] == rungs[0].gpu_days / 8 and rows[0]["dollars"] == rungs[0].cost
    assert str(found).startswith("8 x a100 of")
    with pytest.raises(UserError, match="json is an option of the command"):
        plan_training(json=True)
    with pytest.raises(UserError, match="gpu: expected one of"):
        plan_training(gpu="abacus")
