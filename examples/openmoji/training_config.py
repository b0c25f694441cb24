"""Settings that the trainings of vae-mini and t5-mini share."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ScheduleConfig:
    """How long a network trains, and how fast."""

    samples: int
    """Samples to train on."""
    batch_size: int
    """Samples a step, of all processes."""
    lr: float
    """Peak learning rate of AdamW: reached after warmup_samples, held, then taken to 0 in a straight line."""
    muon_lr: float
    """The same of Muon, for the inner matrices and filters."""
    warmup_samples: int
    """Samples until the peak."""
    decay_share: float = 0.4
    """Share of all samples over which the learning rate falls, at the end."""
    weight_decay: float = 0.01
    """On matrices and filters."""
    checkpoint_samples: int = 10_000
    """Samples between checkpoints."""
    log_interval_s: float = 20.0
    """Seconds between lines of figures."""
    num_processes: int = 2
    """Processes of one thread each that share every batch."""

    def __post_init__(self) -> None:
        if self.batch_size % self.num_processes:
            raise ValueError(f"a batch of {self.batch_size} does not divide among {self.num_processes} processes")
        if not 0 <= self.decay_share <= 1:
            raise ValueError(f"decay_share is {self.decay_share}: use a share between 0 and 1")

    def lr_share(self, seen: int) -> float:
        """The share of the peak learning rates in the step after `seen` samples."""
        rising = (seen + self.batch_size) / (self.warmup_samples + self.batch_size)
        falling = (self.samples - seen) / max(1.0, self.samples * self.decay_share)
        return max(0.0, min(1.0, rising, falling))
