"""Settings that the trainings of the small world's networks share."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """Length and learning rate of a training: warm-up, then as a subclass says."""

    samples: int
    """Samples to train on."""
    batch_size: int
    """Samples a step, of all processes."""
    lr: float
    """Peak learning rate of AdamW, reached after warmup_samples."""
    warmup_samples: int
    """Samples until the peak."""
    weight_decay: float = 0.01
    """Weight decay of matrices and filters."""
    checkpoint_samples: int = 10_000
    """Samples between checkpoints."""
    log_interval_s: float = 20.0
    """Seconds between lines of figures."""

    def lr_share(self, seen: int) -> float:
        """The share of the peak learning rate in the step after `seen` samples."""
        return min(1.0, (seen + self.batch_size) / (self.warmup_samples + self.batch_size))


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(PhaseConfig):
    """Schedule with Muon for the inner matrices and filters; after the warm-up held, then taken to 0 in a straight line."""

    muon_lr: float
    """Peak learning rate of Muon."""
    decay_share: float = 0.4
    """Share of all samples over which the learning rates fall, at the end."""
    num_processes: int = 2
    """Processes of one thread each that share every batch."""

    def __post_init__(self) -> None:
        if self.batch_size % self.num_processes:
            raise ValueError(f"a batch of {self.batch_size} does not divide among {self.num_processes} processes")
        if not 0 <= self.decay_share <= 1:
            raise ValueError(f"decay_share is {self.decay_share}: use a share between 0 and 1")

    def lr_share(self, seen: int) -> float:
        """The share of the peak learning rates in the step after `seen` samples."""
        falling = (self.samples - seen) / max(1.0, self.samples * self.decay_share)
        return max(0.0, min(super().lr_share(seen), falling))
