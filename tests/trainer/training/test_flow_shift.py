"""The shift of a flow's times follows the resolution, in training, in pipeline.json and after a resume."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from foundry.errors import UserError
from model.diffusion import RectifiedFlow
from model.formats.checkpoint import read_pipeline_config
from tests.trainer.tiny_training import newest_weights, tiny_config, training_losses, write_store
from trainer.config.ladder import Rung
from trainer.config.network import ObjectiveConfig
from trainer.config.running import CheckpointConfig
from trainer.config.train import TrainConfig
from trainer.fit import main
from trainer.monitoring.run_folder import CONFIG, list_checkpoints
from trainer.training.rung_parts import open_objective

LADDER = tuple(Rung(resolution=side, images=16, batch_size=4) for side in (16, 32))
SHIFTED = ObjectiveConfig(name="rectified_flow", settings={"std": 0.9}, shifts={32: 3.0})


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("features")
    for rung in LADDER:
        write_store(root, resolution=rung.resolution)
    return root


@pytest.fixture(scope="module")
def trained(features: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    keep = CheckpointConfig(every_images=8, keep_last=9)
    config = tiny_config(
        tmp_path_factory.mktemp("whole"), features=str(features), ladder=LADDER, objective=SHIFTED, checkpoint=keep
    )
    assert main(config) == 0
    return config


def test_each_resolution_has_its_shift_and_its_checkpoints_say_so(trained: TrainConfig) -> None:
    found = [read_pipeline_config(path).objective_settings for path in list_checkpoints(Path(trained.run_folder))]
    assert found == [{"std": 0.9}, {"std": 0.9}, {"std": 0.9, "shift": 3.0}, {"std": 0.9, "shift": 3.0}]
    assert [open_objective(trained, side) for side in (16, 32)] == [
        RectifiedFlow(std=0.9),
        RectifiedFlow(std=0.9, shift=3.0),
    ]
    log = (Path(trained.run_folder) / "log.txt").read_text().splitlines()
    assert [line.endswith("; times are shifted by 3") for line in log if " px: " in line] == [False, True]


def test_the_times_of_training_are_the_formula() -> None:
    quantiles = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    times = torch.sigmoid(0.9 * torch.special.ndtri(quantiles))
    found = RectifiedFlow(std=0.9, shift=3.0).timesteps_at(quantiles) / 1000
    torch.testing.assert_close(found, 3 * times / (1 + 2 * times))


def test_only_the_shifted_resolution_trains_otherwise(features: Path, trained: TrainConfig, tmp_path: Path) -> None:
    plain = replace(trained, run_dir=str(tmp_path), objective=replace(SHIFTED, shifts={}))
    assert main(plain) == 0
    ours, theirs = training_losses(trained), training_losses(plain)
    same = [seen for seen, loss in theirs.items() if ours[seen] == loss]
    assert same == [4, 8, 12, 16]  # the first resolution, to the last bit


def test_it_resumes_bit_for_bit_from_its_own_settings_and_refuses_others(trained: TrainConfig, tmp_path: Path) -> None:
    recorded = yaml.safe_load((Path(trained.run_folder) / CONFIG).read_text())
    assert recorded["objective"]["shifts"] in ({32: 3.0}, {"32": 3.0})
    config = replace(trained, run_dir=str(tmp_path))
    name = f"checkpoints/{24:012d}"
    shutil.copytree(Path(trained.run_folder) / name, Path(config.run_folder) / name)
    with pytest.raises(UserError, match=r"settings of the objective .*'shift': 3.0} then, .*'shift': 2.0} now"):
        main(replace(config, objective=replace(SHIFTED, shifts={32: 2.0})))
    assert main(config) == 0
    assert training_losses(config) == {seen: loss for seen, loss in training_losses(trained).items() if seen > 24}
    ours, theirs = newest_weights(config), newest_weights(trained)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_shifts_that_make_no_sense_are_refused() -> None:
    for objective, words in [
        (ObjectiveConfig(shifts={256: 2.0}), "objective.shifts must be empty for the objective diffusion"),
        (replace(SHIFTED, shifts={256: 0.0}), "objective.shifts must be above 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            tiny_config(Path(), objective=objective)
