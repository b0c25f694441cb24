"""Trains llava-mini on endless scenes and writes it where the captioner's default looks for it.

    python -m examples.openmoji.train_llava

Two phases: the vision tower learns to label patches (llava_warmup.py), then the whole learns to write the captions. The same
command again goes on where the last one stopped; `--out` gets a loadable model at every checkpoint.
"""

from dataclasses import dataclass
from typing import Literal

from dataset_builder.command_line import run_command


@dataclass(frozen=True)
class PhaseConfig:
    """How one phase trains."""

    images: int
    """Images to train on."""
    lr: float
    """Peak learning rate of AdamW; reached after warmup_images, then a cosine to a twentieth."""
    vision_lr: float
    """The same for the vision tower; 0 freezes it."""
    batch_size: int = 64
    """Images a step, of all processes."""
    warmup_images: int = 20_000
    """Images until the peak of the learning rate."""
    weight_decay: float = 0.01
    """AdamW's, on matrices."""


@dataclass(frozen=True)
class TrainLlavaConfig:
    """llava-mini's training."""

    out: str = "captioner/pretrained/llava-mini"
    """Folder of the finished model."""
    run_dir: str = "runs/llava-mini"
    """Folder of the training state."""
    seed: int = 0
    """Seed of weights and scenes."""
    warmup: PhaseConfig = PhaseConfig(images=100_000, lr=1.2e-3, vision_lr=1.2e-3)
    """The phase of patch labels."""
    captions: PhaseConfig = PhaseConfig(images=200_000, lr=1e-3, vision_lr=0.0, batch_size=32, warmup_images=8_000)
    """The phase of captions."""
    compile: Literal["auto", "true", "false"] = "auto"
    """Compile the networks; auto: where there is a C++ compiler."""
    log_interval_s: float = 20.0
    """Seconds between lines of figures."""
    checkpoint_images: int = 16_000
    """Images between checkpoints."""
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
            example="python -m examples.openmoji.train_llava --captions.images 300000",
        )
    )
