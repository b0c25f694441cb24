"""The trainings that are compared, each by trainer.fit in its own folder, which resumes where it was stopped.

OUT/trainings/paper/<seed>/{pixel,alignment,aesthetic}: one stage from the other. OUT/trainings/cheap/<seed>/alignment keeps a
checkpoint at each point, and OUT/trainings/cheap/<seed>/<images>/aesthetic starts from it, so that every point is a whole
training. Trainings of one seed see the same images in the same order.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.recipes.config import RESOLUTION_PX, CheapRecipeConfig
from benchmarks.staged_world import features_folder
from foundry.errors import UserError
from trainer import fit

_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A whole training: its stages in order, and the images of each that it rests on."""

    runs: Mapping[Path, int]
    """Images by the folder of each stage's run."""

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that it ends in."""
        run, images = list(self.runs.items())[-1]
        return _checkpoint(run, images)


def train_paper(seed: int, config: CheapRecipeConfig) -> Trained:
    """The paper's three stages; trains what is not trained yet. Raises UserError if a training fails."""
    folder = config.folder / "trainings" / "paper" / str(seed)
    stages = {
        "pixel": config.pixel_images,
        "alignment": config.images,
        "aesthetic": config.aesthetic_images(config.images),
    }
    runs = {}
    for stage, images in stages.items():
        runs[folder / stage] = _train(config.paper, stage, seed, config, folder=folder, images=images)
    return Trained(runs=runs)


def train_cheap(seed: int, config: CheapRecipeConfig) -> list[Trained]:
    """The cheap recipe's two stages up to each point, the shortest first. Raises UserError if a training fails."""
    folder = config.folder / "trainings" / "cheap" / str(seed)
    kept = {"checkpoint.every_images": config.images // config.points, "checkpoint.keep_last": config.points}
    _train(config.cheap, "alignment", seed, config, folder=folder, images=config.images, more=kept)
    points = []
    for before in config.point_images:
        here, start = folder / str(before), _checkpoint(folder / "alignment", before)
        images = config.aesthetic_images(before)
        seen = _train(config.cheap, "aesthetic", seed, config, folder=here, images=images, more={"init_from": start})
        points.append(Trained(runs={folder / "alignment": before, here / "aesthetic": seen}))
    return points


def _train(
    recipe: str,
    stage: str,
    seed: int,
    config: CheapRecipeConfig,
    *,
    folder: Path,
    images: int,
    more: Mapping[str, object] | None = None,
) -> int:
    """Trains a stage where it is not trained yet; returns the images seen, a whole number of steps."""
    whole = -(-images // config.batch_size) * config.batch_size
    if not _checkpoint(folder / stage, whole).is_dir():
        print(f"training {folder / stage}: {whole} images", flush=True)
        arguments = fit_arguments(recipe, stage, seed, config, folder=folder, images=whole, more=more or {})
        code = fit.run(arguments)  # in this process, so that what stops the benchmark stops the training
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            raise UserError(f"python -m trainer.fit {shlex.join(arguments)} ended with exit code {code}")
    return whole


def fit_arguments(
    recipe: str, stage: str, seed: int, config: CheapRecipeConfig, *, folder: Path, images: int, more: Mapping[str, object]
) -> list[str]:
    """Arguments of the command that trains a stage."""
    settings: dict[str, object] = {
        "config": recipe,
        "stage": stage,
        "features": features_folder(config),
        "run_dir": folder,
        "seed": seed,
        "ladder": json.dumps([{"resolution": RESOLUTION_PX, "images": images, "batch_size": config.batch_size}]),
        "watch.validate_every_images": 0,
        "watch.sample_every_images": 0,
        "checkpoint.every_images": max(config.batch_size, images // 4),
        "checkpoint.keep_last": 1,
    }
    return [f"--{name}={value}" for name, value in {**settings, **more}.items()]


def _checkpoint(run: Path, images: int) -> Path:
    return run / "checkpoints" / f"{images:012d}"
