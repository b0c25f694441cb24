"""Trains vae-mini on endless scenes and writes it where `--vae mini` is looked for.

    python -m examples.openmoji.train_vae

The same command again resumes; `--out` gets a loadable model at every checkpoint.
"""

from dataclasses import dataclass, field

from examples.openmoji.training_config import ScheduleConfig
from foundry.command_line import run_command


@dataclass(frozen=True)
class TrainVAEConfig:
    """vae-mini's training."""

    out: str = "runs/vae-mini/model"
    """Folder of the finished model; the shipped one is never written unless it is named."""
    run_dir: str = "runs/vae-mini"
    """Folder of the training state."""
    seed: int = 0
    """Seed of weights and scenes."""
    noise: float = 0.2
    """Largest deviation of the noise on latents of unit power while training."""
    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(samples=48_000, batch_size=16, lr=1e-3, muon_lr=3e-3, warmup_samples=1_000)
    )
    """Length and learning rate of the training; samples are images."""


def main(config: TrainVAEConfig) -> int:
    """Trains what is still to be trained."""
    from examples.openmoji.vae_training import train

    train(config)
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            TrainVAEConfig,
            main,
            prog="python -m examples.openmoji.train_vae",
            example="python -m examples.openmoji.train_vae --schedule.samples 200000",
        )
    )
