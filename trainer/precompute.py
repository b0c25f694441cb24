"""Command that encodes images and captions once, before training.

    python -m trainer.precompute --dataset DATASET --out FEATURES --stage STAGE --vae.name VAE --text_encoder.name T5

Writes FEATURES/<stage>/<resolution>/, from which trainer.fit reads. Runs on Ray, on one machine or a cluster; the same command
again resumes it. Several resolutions are computed in one pass: each image is decoded and each caption encoded once.
"""

import time
from typing import TYPE_CHECKING

from foundry.command_line import run_command
from foundry.storage.folder import Folder, store_errors
from foundry.storage.locations import absolute, is_local_path
from foundry.units.cluster import check_paths
from model.encoders.frozen_parts import PUBLISHED
from trainer.features.config import PrecomputeConfig

if TYPE_CHECKING:
    from trainer.features.job import EncoderFacts, Encoders


def main(config: PrecomputeConfig) -> int:
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
    """Makes the teacher's features of all stores; returns as main does. Raises UserError."""
    started = time.perf_counter()
    from trainer.features.ray_encoders import start_and_describe
    from trainer.features.teacher.preparation import prepare_teacher, run_teacher

    tasks = prepare_teacher(config, describe=lambda encoders: start_and_describe(encoders, config.ray, visible={}))
    return run_teacher(config, tasks, started=started)


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            PrecomputeConfig,
            main,
            prog="python -m trainer.precompute",
            example="python -m trainer.precompute --dataset dataset --out features --stage alignment --resolution 256 512 "
            f"--vae.name {PUBLISHED[120]} --text_encoder.name {PUBLISHED[120]}",
        )
    )
