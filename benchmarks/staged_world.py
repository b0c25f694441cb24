"""The data of trainings in the small world: scenes, captions, data sets, features, each by a command that a user would give."""

import json
from pathlib import Path
from typing import Protocol

from benchmarks.commands import run_module
from benchmarks.staged_config import RESOLUTION_PX
from examples.openmoji.demo_commands import STYLE

_SEED = 11
_VALIDATION_SHARE = 0.06
SPLITS = ("--splits", json.dumps({"validation": _VALIDATION_SHARE, "train": 1 - _VALIDATION_SHARE}))
"""Arguments of dataset_builder.build."""


class WorldConfig(Protocol):
    """Settings of the scenes, and paths."""

    @property
    def folder(self) -> Path:
        """Folder of the benchmark."""

    @property
    def scenes(self) -> int:
        """Number of scenes with one object."""

    @property
    def num_kinds(self) -> int:
        """Number of kinds of object in them."""


def make_world(config: WorldConfig, *, style: bool = False, teacher: bool = False) -> None:
    """Makes what is not there yet; each command finds its own work done. Raises UserError if one fails.

    `style`: with features of the stage aesthetic, of mostly large objects as in the demo; `teacher`: with what the tower of
    llava-mini sees in those of alignment.
    """
    folder = config.folder / "world"
    scenes, run, dataset = (str(folder / name) for name in ("scenes", "run", "dataset"))
    world = ("--single_objects", "--num_kinds", str(config.num_kinds))
    counted = ("--count", str(config.scenes), "--seed", str(_SEED), "--format", "tar")
    run_module("examples.openmoji.scenes", *counted, *world, "--out", scenes)
    run_module("captioner.run", "--images", scenes, "--out", run, "--model", "mini")
    run_module("dataset_builder.build", "--captions", run, "--out", dataset, *SPLITS)
    _precompute(folder, "pixel", dataset)
    _precompute(folder, "alignment", dataset, *(("--teacher.name", "mini") if teacher else ()))
    if style:
        chosen = str(folder / "style")
        run_module("dataset_builder.build", "--captions", run, "--out", chosen, *SPLITS, "--where", STYLE)
        _precompute(folder, "aesthetic", chosen)


def _precompute(folder: Path, stage: str, dataset: str, *more: str) -> None:
    parts = ("--vae.name", "mini", "--text_encoder.name", "mini")
    chosen = ("--stage", stage, "--resolution", str(RESOLUTION_PX), *parts)
    run_module("trainer.precompute", "--dataset", dataset, "--out", str(folder / "features"), *chosen, *more)


def features_folder(config: WorldConfig, stage: str | None = None) -> Path:
    """Folder of all stages' features, or of one stage's."""
    folder = config.folder / "world" / "features"
    return folder if stage is None else folder / stage / str(RESOLUTION_PX)
