"""Trains llava-mini on endless scenes; copied to captioner/pretrained, it is the captioner's `--model mini`.

    python -m examples.openmoji.train_llava

Two phases: the vision tower learns to label patches (llava_warmup.py), then the whole learns to write the captions. The same
command again resumes; `--out` gets a loadable model at every checkpoint.
"""

import math
from dataclasses import dataclass
from typing import Literal

from examples.openmoji.training_config import PhaseConfig
from foundry.command_line import run_command

_FINAL_LR_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class LlavaPhaseConfig(PhaseConfig):
    """One phase; after the warm-up the learning rates follow a cosine to a twentieth. Samples are images."""

    vision_lr: float
    """Peak learning rate of the vision tower; 0 freezes it."""

    def lr_share(self, seen: int) -> float:
        """The share of the peak learning rates in the step after `seen` images."""
        progress = max(0, seen - self.warmup_samples) / max(1, self.samples - self.warmup_samples)
        falling = _FINAL_LR_SHARE + (1 - _FINAL_LR_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))
        return min(super().lr_share(seen), falling)


@dataclass(frozen=True)
class TrainLlavaConfig:
    """llava-mini's training."""

    out: str = "runs/llava-mini/model"
    """Folder of the finished model; the shipped one is never written unless it is named."""
    run_dir: str = "runs/llava-mini"
    """Folder of the training state."""
    seed: int = 0
    """Seed of weights and scenes."""
    warmup: LlavaPhaseConfig = LlavaPhaseConfig(
        samples=100_000, batch_size=64, lr=1.2e-3, vision_lr=1.2e-3, warmup_samples=20_000, checkpoint_samples=16_000
    )
    """The phase of patch labels."""
    captions: LlavaPhaseConfig = LlavaPhaseConfig(
        samples=200_000, batch_size=32, lr=1e-3, vision_lr=0.0, warmup_samples=8_000, checkpoint_samples=16_000
    )
    """The phase of captions."""
    compile: Literal["auto", "true", "false"] = "auto"
    """Compile the networks; auto: where there is a C++ compiler."""
    num_processes: int = 2
    """Processes that share each batch, of one thread each: where other programs run on the same cores, the threads of one
    process would wait for each other at every operation."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}.batch_size is {phase.batch_size}, which {self.num_processes} processes cannot share evenly: use a multiple"
            for name, phase in (("warmup", self.warmup), ("captions", self.captions))
            if phase.batch_size % self.num_processes
        ]
        if problems:
            raise ValueError("; ".join(problems))


def main(config: TrainLlavaConfig) -> int:
    """Trains what is still to be trained."""
    from examples.openmoji.llava_training import train

    train(config)
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            TrainLlavaConfig,
            main,
            prog="python -m examples.openmoji.train_llava",
            example="python -m examples.openmoji.train_llava --captions.samples 300000",
        )
    )
