"""The data of the staged trainings: scenes, captions, data set and features, each by the command that a user would give."""

import json
from pathlib import Path

from benchmarks.commands import run_module
from benchmarks.staged_config import RESOLUTION_PX, StagedTrainingConfig

_SEED = 11
_VALIDATION_SHARE = 0.06


def make_world(config: StagedTrainingConfig) -> None:
    """Makes what is not there yet; each command finds its own work done. Raises UserError where one fails."""
    folder = config.folder / "world"
    scenes, run, dataset = (str(folder / name) for name in ("scenes", "run", "dataset"))
    world = ("--single_objects", "--num_kinds", str(config.num_kinds))
    counted = ("--count", str(config.scenes), "--seed", str(_SEED), "--format", "tar")
    splits = json.dumps({"validation": _VALIDATION_SHARE, "train": 1 - _VALIDATION_SHARE})
    run_module("examples.openmoji.scenes", *counted, *world, "--out", scenes)
    run_module("captioner.run", "--images", scenes, "--out", run, "--model", "mini")
    run_module("dataset_builder.build", "--captions", run, "--out", dataset, "--splits", splits)
    parts = ("--vae.name", "mini", "--text_encoder.name", "mini")
    for stage in ("pixel", "alignment"):
        chosen = ("--stage", stage, "--resolution", str(RESOLUTION_PX), *parts)
        run_module("trainer.precompute", "--dataset", dataset, "--out", str(folder / "features"), *chosen)


def features_folder(config: StagedTrainingConfig, stage: str | None = None) -> Path:
    """Of all stages, or of one."""
    folder = config.folder / "world" / "features"
    return folder if stage is None else folder / stage / str(RESOLUTION_PX)
