"""Command that encodes images and captions once, before training.

    python -m trainer.precompute --dataset DATASET --out FEATURES --stage STAGE --vae.name VAE --text_encoder.name T5

Writes FEATURES/<stage>/<resolution>/, from which trainer.fit reads. Runs on Ray, on one machine or a cluster; the same command
again resumes it. Several resolutions are computed in one pass: each image is decoded and each caption encoded once.
"""

from foundry.command_line import run_command
from model.encoders.frozen_parts import PUBLISHED
from trainer.features.config import PrecomputeConfig


def main(config: PrecomputeConfig) -> int:
    """Makes the features; returns 0, or 1 where units failed or more samples were rejected than allowed. Raises UserError."""
    from trainer.api.features import precompute

    return precompute(config)


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
