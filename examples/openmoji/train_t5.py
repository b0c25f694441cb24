"""Trains t5-mini on the texts of endless scenes and writes it next to its tokenizer.

    python -m examples.openmoji.train_t5

The same command again resumes; `--out` gets a loadable model at every checkpoint.
"""

from dataclasses import dataclass, field

from examples.openmoji.training_config import ScheduleConfig
from foundry.command_line import run_command


@dataclass(frozen=True)
class TrainT5Config:
    """t5-mini's training."""

    out: str = "runs/t5-mini/model"
    """Folder of the finished model; the shipped one is never written unless it is named."""
    tokenizer: str = "model/pretrained/t5-mini"
    """Folder of the tokenizer, which train_tokenizers writes; it is copied to `out`."""
    run_dir: str = "runs/t5-mini"
    """Folder of the training state."""
    seed: int = 0
    """Seed of weights, scenes and phrasings."""
    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(
            samples=180_000, batch_size=64, lr=1.5e-3, muon_lr=3e-3, warmup_samples=3_000, checkpoint_samples=20_000
        )
    )
    """Length and learning rate of the training; samples are texts."""


def main(config: TrainT5Config) -> int:
    """Trains what is still to be trained."""
    from examples.openmoji.t5_training import train

    train(config)
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            TrainT5Config,
            main,
            prog="python -m examples.openmoji.train_t5",
            example="python -m examples.openmoji.train_t5 --schedule.samples 300000",
        )
    )
