"""Trainings by the options of the command, and what a training's folder holds: metrics, checkpoints, sample grids."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from dataset_builder.api.answer import Answer
from foundry.api.functions import read_options, takes_options
from foundry.errors import UserError
from foundry.units.cluster import check_paths
from trainer.api.metrics import load_metrics
from trainer.config.train import CONFIG_FILE, RecipeName, StageName, TrainConfig
from trainer.stages import named_by, recipe_of_runs, recorded_recipe

if TYPE_CHECKING:
    from PIL import Image


class Training:
    """The folder of a training, RUN_DIR/<stage>, finished or not.

    Example:

        training = open_training("runs/alignment")
        training.metrics(kind="validation").df().plot("images_seen", "loss")
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def metrics(self, *, kind: str | None = None) -> Answer:
        """Its metrics, as load_metrics gives them. Raises UserError if nothing was written yet."""
        return load_metrics(self.folder, kind=kind)

    @property
    def checkpoints(self) -> list[Path]:
        """Folders of its complete checkpoints, the oldest first."""
        from trainer.monitoring.run_folder import list_checkpoints

        return list_checkpoints(self.folder)

    @property
    def checkpoint(self) -> Path | None:
        """Folder of its newest complete checkpoint; None if there is none yet."""
        return self.checkpoints[-1] if self.checkpoints else None

    def sample_grids(self) -> "dict[int, Image.Image]":
        """The grids of samples that it drew on its way, by the number of images seen, in order."""
        from PIL import Image

        found = {}
        for path in sorted((self.folder / "samples").glob("*.png")):
            with Image.open(path) as image:
                found[int(path.stem)] = image.convert("RGB")
        return found

    def __fspath__(self) -> str:
        """Its folder, so that it can be given for one, or for its newest checkpoint."""
        return str(self.folder)

    def __repr__(self) -> str:
        return f"Training({str(self.folder)!r})"


@dataclass(frozen=True, kw_only=True)
class TrainOptions(TrainConfig):
    """The options of trainer.fit, with the file that `--config` takes."""

    config: str | None = None
    """YAML file with any of the options, also by stage; options that are given go over the file, the file over the recipe."""


def _read(options: dict[str, Any]) -> TrainConfig:
    """Recipe < file < options, as in the command. Raises UserError."""
    from trainer.planning.config import PlanConfig
    from trainer.planning.estimate import stage_configs

    stage, file = options.get("stage"), options.pop("config", None)
    stages = [name for name in get_args(StageName) if name != "all"]
    if stage not in stages:
        raise UserError(
            f"stage: expected one of {', '.join(stages)}, found {stage}: train one stage with a call", setting="stage"
        )
    words = [] if file is None else ["--config", str(file)]
    run_dir = options.get("run_dir") or named_by(words, "run_dir") or TrainConfig.run_dir
    recipe = options.get("recipe") or named_by(words, "recipe") or recipe_of_runs(str(run_dir), stage)
    chosen = cast("RecipeName | None", recipe)  # another name is refused with the options
    (base,) = stage_configs(PlanConfig(stage=stage, recipe=chosen, fit_config=None if file is None else str(file)))
    return read_options(TrainConfig, options, command="trainer.fit", defaults=base)


@takes_options(TrainOptions, command="trainer.fit", read=_read)
def train(options: TrainConfig) -> Training:
    """Trains one stage, on this machine or with `num_workers` on Ray, and opens its folder. Needs the extra `train`.

    The same call resumes. Interrupt the cell once and it saves a checkpoint and returns. A stage starts from the newest
    checkpoint of the stage before. The defaults are those of the stage's recipe, then those in the file `config`; a group of
    options as a mapping changes those that it names. Raises UserError for options, features and checkpoints that do not fit.

    Example:

        from trainer import train
        ladder = [{"resolution": 256, "images": 1_000_000, "batch_size": 256}]
        training = train(stage="alignment", features="features", run_dir="runs", ladder=ladder, watch={"every_steps": 10})
        training.checkpoint
    """
    fit_stage(options)
    return Training(Path(options.run_folder))


def open_training(folder: "str | os.PathLike[str]") -> Training:
    """Opens the folder of a training, RUN_DIR/<stage>, also while it runs. Raises UserError if no training has written there.

    Example:

        from trainer import open_training
        open_training("runs/alignment").checkpoint
    """
    if not (Path(folder) / CONFIG_FILE).exists():
        raise UserError(f"{os.fspath(folder)} is not the folder of a training: give RUN_DIR/<stage>, such as runs/alignment")
    return Training(Path(folder))


def fit_stage(config: TrainConfig) -> bool:
    """Trains one stage here or on Ray; returns whether it is done, or was stopped. Raises UserError."""
    from trainer.monitoring.tracking.process import check_trackers
    from trainer.training.start import check_start, check_workers

    check_paths([config.features, config.run_dir, *config.data.paths])
    _check_recipe(config)
    check_workers(config, config.num_workers)
    check_trackers(config.watch)
    check_start(config)
    if config.num_workers > 1:
        from trainer.training.ray_workers import train_on_ray

        return train_on_ray(config)
    from trainer.training.loop import train_here

    return train_here(config, device=config.device)


def _check_recipe(config: TrainConfig) -> None:
    """Raises UserError if the run was started with another recipe."""
    begun_by = recorded_recipe(config.run_folder)
    if begun_by not in (None, config.recipe):
        raise UserError(
            f"{config.run_folder} was started with the recipe {begun_by}, and {config.recipe} is asked for: give that one, or "
            "another run_dir",
            setting="recipe",
        )
