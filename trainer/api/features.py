"""Features by the options of the command, and their stores."""

import os
import time
from typing import TYPE_CHECKING

from foundry.api.functions import explained_extras, takes_options
from foundry.errors import UserError
from foundry.storage.folder import Folder, store_errors
from foundry.storage.locations import absolute, is_local_path
from foundry.units.cluster import check_paths
from trainer.features.config import PrecomputeConfig

if TYPE_CHECKING:
    from trainer.features.job import EncoderFacts, Encoders
    from trainer.features.store import FeatureStore


@takes_options(PrecomputeConfig, command="trainer.precompute")
def precompute_features(options: PrecomputeConfig) -> "dict[int, FeatureStore]":
    """Encodes the images and captions of a data set once, on Ray, for training. Needs the extra `train`.

    Returns the store of each resolution. The same call resumes. Raises UserError for a source or an encoder that is
    unavailable, features that were made with other settings, and where too many samples fail.

    Example:

        from trainer import precompute_features
        published = "PixArt-alpha/PixArt-XL-2-1024-MS"
        names = {"vae": {"name": published}, "text_encoder": {"name": published}}
        stores = precompute_features(dataset="data/photos", out="features", stage="alignment", resolution=[256], **names)
    """
    from trainer.features.preparation import stores_of

    if precompute(options):
        raise UserError(
            f"more samples of {options.dataset} fail than max_rejected allows: see the line above", setting="max_rejected"
        )
    return {resolution: open_features(folder.url) for resolution, folder in stores_of(options).items()}


def open_features(store: "str | os.PathLike[str]") -> "FeatureStore":
    """Opens FEATURES/<stage>/<resolution>, also while it is made. Needs the extra `train`.

    Its samples are read by unit and row (see FeatureStore). Raises UserError if it is missing, damaged or empty.

    Example:

        store = open_features("features/alignment/256")
        units = [unit for units in store.samples("train").values() for unit in units]
        batch = store.read([SampleRequest(unit=units[0].unit, row=row, caption=0) for row in range(4)])
        batch.mean.shape  # (4, C, h, w)
    """
    with explained_extras("train"):
        from trainer.features.store import FeatureStore

        return FeatureStore.open(os.fspath(store))


def precompute(config: PrecomputeConfig) -> int:
    """Makes the features; returns 0, or 1 where units failed or more samples were rejected than allowed. Raises UserError."""
    started = time.perf_counter()
    from trainer.features.preparation import prepare, run_tasks

    check_paths([config.dataset, config.out])
    visible = {absolute(path): "" for path in [config.dataset] if is_local_path(path)}

    def describe(encoders: "Encoders") -> "EncoderFacts":
        from trainer.features.ray_encoders import start_and_describe

        return start_and_describe(encoders, config.ray, visible=visible)

    with store_errors(Folder(config.out)):
        code = run_tasks(config, prepare(config, describe=describe), started=started)
        return code or (0 if config.teacher.name is None else _see(config))


def _see(config: PrecomputeConfig) -> int:
    """Makes the teacher's features of all stores; returns as precompute does. Raises UserError."""
    started = time.perf_counter()
    from trainer.features.ray_encoders import start_and_describe
    from trainer.features.teacher.preparation import prepare_teacher, run_teacher

    tasks = prepare_teacher(config, describe=lambda encoders: start_and_describe(encoders, config.ray, visible={}))
    return run_teacher(config, tasks, started=started)
