"""Running: checkpoints, monitoring, and several workers."""

from dataclasses import dataclass
from typing import Literal

from trainer.config.check import Check

Sharding = Literal["ddp", "fsdp", "hsdp"]
TRACKERS = ("wandb", "trackio", "mlflow", "tensorboard")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Intervals of checkpoints, and which of them are kept."""

    every_images: int | None = None
    """Images between two checkpoints; default: by minutes. Another one is written at the end of each resolution step."""
    every_minutes: float | None = None
    """Minutes between two checkpoints; default: 15 if every_images is not set, and more if writing them takes over 0.3 % of
    the time."""
    keep_last: int = 3
    """Number of newest checkpoints to keep."""
    keep_every_images: int = 0
    """Keep permanently the first checkpoint at or after each multiple of this many images; 0: none."""

    def checks(self) -> list[Check]:
        """Conditions on the values, for error messages."""
        return [
            ("every_images", "1 or more", self.every_images is None or self.every_images >= 1),
            ("every_minutes", "above 0", self.every_minutes is None or self.every_minutes > 0),
            ("keep_last", "1 or more", self.keep_last >= 1),
            ("keep_every_images", "0 or more", self.keep_every_images >= 0),
        ]


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """Settings of monitoring: logs, validation, sample grids."""

    every_steps: int = 20
    """Steps between two log lines and rows of metrics.jsonl."""
    validate_every_images: int | None = None
    """Images between two measurements of the validation loss; 0: never measure it; default: by minutes."""
    validate_every_minutes: float | None = None
    """Minutes between two measurements; default: 30 if validate_every_images is not set, and more if they take over 0.3 % of
    the time."""
    validation_images: int = 1024
    """Maximum number of images for the validation loss."""
    timestep_bands: int = 4
    """Number of equal bands of timesteps in which the validation loss is reported."""
    sample_every_images: int | None = None
    """Images between two sample grids; 0: draw none; default: by minutes."""
    sample_every_minutes: float | None = None
    """Minutes between two sample grids; default: 60 if sample_every_images is not set, and more if they take over 0.3 % of the
    time."""
    prompts: tuple[str, ...] = ()
    """Prompts of the sample grids; empty: captions of the validation split, which need no text encoder."""
    num_samples: int = 8
    """Number of images in a grid if no prompts are given."""
    sample_steps: int = 20
    """Sampling steps of the sample grids."""
    guidance_scale: float = 4.5
    """Guidance scale of the sample grids; 1 or less: no guidance."""
    spike_factor: float = 3.0
    """Log the samples of a step whose loss exceeds this many times the median of the last 100 steps."""
    record_losses_every_steps: int = 0
    """Record the loss of each sample in every N-th step, for the view `losses` of dataset_builder.query; 0: none."""
    tracker: str = ""
    """Trackers that get metrics and samples while training: wandb, trackio, mlflow, tensorboard; several with commas."""
    tracker_project: str | None = None
    """Project (W&B, trackio) or experiment (MLflow) of a new tracked run; default: that of the tracker's own environment
    variable, otherwise t2i-foundry."""
    peak_tflops: float | None = None
    """Peak of a device for MFU, in 10^12 operations per second; none: looked up for known GPUs."""

    @property
    def is_validated(self) -> bool:
        """Whether the validation loss is measured at all."""
        return self.validate_every_images != 0 or self.validate_every_minutes is not None

    @property
    def is_sampled(self) -> bool:
        """Whether sample grids are drawn at all."""
        return self.sample_every_images != 0 or self.sample_every_minutes is not None

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of the trackers."""
        return tuple(dict.fromkeys(name for part in self.tracker.split(",") if (name := part.strip())))

    def checks(self) -> list[Check]:
        """Conditions on the values, for error messages."""
        return [
            ("every_steps", "1 or more", self.every_steps >= 1),
            ("tracker", f"names among {', '.join(TRACKERS)}, with commas", set(self.trackers) <= set(TRACKERS)),
            *(
                (name, "0 or more", getattr(self, name) is None or getattr(self, name) >= 0)
                for name in ("validate_every_images", "sample_every_images")
            ),
            *(
                (name, "above 0", getattr(self, name) is None or getattr(self, name) > 0)
                for name in ("validate_every_minutes", "sample_every_minutes")
            ),
            ("timestep_bands", "1 or more", self.timestep_bands >= 1),
            ("validation_images", "1 or more", self.validation_images >= 1),
            ("num_samples", "1 or more", self.num_samples >= 1),
            ("sample_steps", "1 to 1000", 1 <= self.sample_steps <= 1000),
            ("guidance_scale", "0 or more", self.guidance_scale >= 0),
            ("record_losses_every_steps", "0 or more", self.record_losses_every_steps >= 0),
            ("spike_factor", "above 1", self.spike_factor > 1),
            ("peak_tflops", "above 0", self.peak_tflops is None or self.peak_tflops > 0),
        ]


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """Settings of training on several workers. Ray starts them where --num_workers is more than 1."""

    sharding: Sharding = "ddp"
    """Sharding: ddp (each worker holds all weights), fsdp (each holds its shard of weights, gradients and optimiser; FSDP2)
    or hsdp (fsdp among the workers of a group, and a copy in each group, so that weights do not travel between nodes)."""
    shard_workers: int = 0
    """Workers of a group of hsdp; 0: those of a node."""
    max_failures: int = 3
    """Number of times that lost workers are replaced, from the last checkpoint, before the training stops."""
    cpus_per_worker: int = 1
    """CPU cores per worker if there is no GPU: Ray reserves them, and torch uses as many threads."""
    address: str | None = None
    """Address of a running Ray cluster. Default: RAY_ADDRESS, which a Ray job sets, otherwise a local Ray is started."""
    timeout_s: int = 1800
    """Timeout of a worker that waits for another one, in seconds."""
    wait_for_gpus_s: float = 0.0
    """Maximum time to wait for a GPU for each worker, on a cluster that adds nodes by itself, in seconds; 0: none."""

    def checks(self) -> list[Check]:
        """Conditions on the values, for error messages."""
        return [
            ("shard_workers", "0 or more", self.shard_workers >= 0),
            ("shard_workers", "left out unless sharding is hsdp", not self.shard_workers or self.sharding == "hsdp"),
            ("max_failures", "0 or more", self.max_failures >= 0),
            ("cpus_per_worker", "1 or more", self.cpus_per_worker >= 1),
            ("timeout_s", "1 or more", self.timeout_s >= 1),
            ("wait_for_gpus_s", "0 or more", self.wait_for_gpus_s >= 0),
        ]
