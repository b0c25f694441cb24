"""All settings of a training: one frozen dataclass, filled by a stage's function, a file and flags. Imports no torch."""

from dataclasses import dataclass, field
from typing import Any, Literal

from foundry.hardware import AutoDtype
from model.dit_config import DiTConfig, KVCompression

StageName = Literal["pixel", "alignment", "aesthetic", "all"]
Sharding = Literal["ddp", "fsdp"]
Schedule = Literal["constant", "cosine"]
SCRATCH = "scratch"
DIFFUSION: Literal["diffusion"] = "diffusion"


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One step of a stage's ladder of resolutions."""

    resolution: int
    """Side of a square image in pixels; FEATURES/<stage>/<resolution> holds its features."""
    images: int
    """Images seen in training, repetitions counted; the last batch may go past it."""
    batch_size: int
    """Images of an optimiser step, over all workers."""
    position_scale: float | None = None
    """Divides the positions; none: those of the rung before, interpolated (the first rung of a new network: 1)."""

    def __post_init__(self) -> None:
        wrong = [name for name in ("resolution", "images", "batch_size") if getattr(self, name) < 1]
        if wrong or (self.position_scale is not None and self.position_scale <= 0):
            raise ValueError(f"rung of {self.resolution} px: expected positive {', '.join(wrong) or 'position_scale'}")

    @property
    def num_steps(self) -> int:
        """Optimiser steps."""
        return -(-self.images // self.batch_size)

    @property
    def images_seen(self) -> int:
        """Images of these steps: a multiple of the batch size."""
        return self.num_steps * self.batch_size


@dataclass(frozen=True, kw_only=True)
class LadderPosition:
    """A position in a stage's ladder."""

    index: int
    """Index of the rung."""
    rung: Rung
    images_before: int
    """Images of the rungs before it."""


def ladder_position(ladder: tuple[Rung, ...], images_seen: int) -> LadderPosition | None:
    """The rung that trains the next image; None where the stage is done."""
    before = 0
    for index, rung in enumerate(ladder):
        if images_seen < before + rung.images_seen:
            return LadderPosition(index=index, rung=rung, images_before=before)
        before += rung.images_seen
    return None


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Sizes of a network that starts from nothing; one that starts from a checkpoint keeps that checkpoint's.

    The rest of model.DiTConfig follows from the stage, the features and the objective.
    """

    width: int = 1152
    """Channels of a token."""
    depth: int = 28
    """Blocks."""
    num_heads: int = 16
    """Attention heads of a block."""
    patch_size: int = 2
    """Side of a patch in latent pixels."""
    mlp_ratio: float = 4.0
    """Hidden channels of a block's MLP, in widths."""
    micro_conditioning: bool = False
    """Condition on the image's original size and aspect ratio too. A checkpoint without it gets it, starting at no effect."""
    qk_norm: bool = False
    """Normalise queries and keys of self-attention (Sigma)."""
    kv_compression: KVCompression = field(default_factory=KVCompression)
    """Self-attention over fewer keys and values (Sigma)."""

    def dit_config(
        self,
        *,
        conditioning: Literal["text", "class"],
        sample_size: int,
        in_channels: int,
        learned_variance: bool,
        caption_width: int = 4096,
        max_caption_tokens: int = 120,
        num_classes: int = 1000,
        position_scale: float = 1.0,
    ) -> DiTConfig:
        """The whole configuration, with what features and objective decide. Raises ValueError where it makes no network.

        Micro-conditioning and Sigma's additions are for captions; a class-conditional network is without them.
        """
        text = conditioning == "text"
        return DiTConfig(
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            patch_size=self.patch_size,
            mlp_ratio=self.mlp_ratio,
            micro_conditioning=text and self.micro_conditioning,
            qk_norm=text and self.qk_norm,
            kv_compression=self.kv_compression if text else KVCompression(),
            conditioning=conditioning,
            sample_size=sample_size,
            in_channels=in_channels,
            learned_variance=learned_variance,
            caption_width=caption_width,
            max_caption_tokens=max_caption_tokens,
            num_classes=num_classes,
            position_scale=position_scale,
        )


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the network is trained for: see model/diffusion.py."""

    name: Literal["diffusion", "rectified_flow"] = DIFFUSION
    """diffusion (the paper's) or rectified_flow."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What its class is made with; empty: its defaults."""

    @property
    def learned_variance(self) -> bool:
        """Whether the network predicts a variance too."""
        return self.name == DIFFUSION and bool(self.settings.get("learned_variance", True))


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW."""

    lr: float = 2e-5
    """Learning rate after the warm-up. Source: PixArt-alpha, Table 4."""
    schedule: Schedule = "constant"
    """constant, or cosine: down to zero over each rung."""
    warmup_steps: int = 1000
    """Steps in which the learning rate rises linearly, at the start of each rung. Source: the authors' code."""
    weight_decay: float = 0.03
    """Of matrices; norms, biases, embeddings and tables have none. Source: the authors' code (there: of all)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment in a step."""
    eps: float = 1e-10
    """Added to the root of the second moment. Source: the authors' code."""
    gradient_clip: float = 0.01
    """Largest norm of the whole gradient. Source: the authors' code."""


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """The exponential moving average of the weights, which is what a checkpoint offers to others."""

    half_life_images: int = 79_000_000
    """Images after which a weight counts half. The paper's 0.9999 in a step of 178 x 64 images."""
    rampup_ratio: float = 0.05
    """The half-life is at most this share of the images seen in the rung, so that short runs have an average too (EDM)."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and in which order."""

    caption_weights: dict[str, float] = field(default_factory=dict)
    """Weight of each caption variant by its name; one is drawn for each sample each time. Empty: all captions the same, and
    `alt_text` for images without a caption."""
    caption_dropout: float = 0.1
    """Share of samples that are trained with the null caption, or without a class. Source: the authors' code."""
    loader_threads: int = 2
    """Threads that read batches ahead; 0: they are read when they are needed. The order does not depend on it."""
    prefetch: int = 4
    """Batches that are read ahead."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a checkpoint is written and which are kept."""

    every_images: int = 2_000_000
    """Images between two checkpoints; one is also written at the end of each rung."""
    keep_last: int = 3
    """How many of the newest are kept."""
    keep_every_images: int = 0
    """Also kept for good: the first at or after each multiple of this; 0: none."""


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What is written down during a training."""

    every_steps: int = 20
    """Steps of a line in the log and of a row of metrics.jsonl."""
    validate_every_images: int = 1_000_000
    """Images between two measurements of the validation loss; 0: never."""
    validation_images: int = 1024
    """Images that it is measured on, at most."""
    timestep_bands: int = 4
    """Equal bands of timesteps whose validation losses are told apart."""
    sample_every_images: int = 2_000_000
    """Images between two grids of samples; 0: never."""
    prompts: tuple[str, ...] = ()
    """What the samples show; empty: captions of the validation split, which need no text encoder."""
    num_samples: int = 8
    """Images of a grid where no prompts are given."""
    sample_steps: int = 20
    """Steps of the sampler."""
    guidance_scale: float = 4.5
    """Guidance of the samples."""
    spike_factor: float = 3.0
    """A loss of so many medians of the last 100 steps is written down with its keys."""
    peak_tflops: float | None = None
    """Peak of a device in 10^12 operations a second, for MFU; none: looked up for known GPUs."""


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """How several workers share the work. Ray starts them where --num_workers is more than 1."""

    sharding: Sharding = "ddp"
    """ddp: each worker has all weights; fsdp: each has its share of weights, gradients and optimiser (FSDP2)."""
    max_failures: int = 3
    """How often lost workers are replaced, each time from the last checkpoint, before the training stops."""
    cpus_per_worker: int = 1
    """Cores of a worker, for Ray and as threads, where there is no GPU."""
    address: str | None = None
    """Address of a running Ray. Default: RAY_ADDRESS, which a Ray job sets, else a Ray of one's own."""
    timeout_s: int = 1800
    """Seconds after which a worker that waits for another gives up."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of `python -m trainer.fit`."""

    stage: StageName
    """pixel, alignment, aesthetic, or all: one after the other."""
    conditioning: Literal["text", "class"] = "text"
    """What the stage's network reads: captions or classes."""
    follows: str | None = None
    """The stage whose newest checkpoint this one starts from."""
    ladder: tuple[Rung, ...] = ()
    """Resolutions, one after the other."""
    features: str = "./features"
    """Folder that trainer.precompute wrote, local or a URL."""
    run_dir: str = "./runs"
    """Folder of runs; this one is run_dir/<stage>. The same command again resumes it."""
    init_from: str | None = None
    """Where it starts: a checkpoint, a run's folder, or `scratch`; default: the newest checkpoint of the stage before."""
    num_workers: int = 1
    """Processes, one for each GPU; more than 1 run on Ray Train."""
    device: str = "auto"
    """cuda, cpu, …; auto: cuda where there is one."""
    seed: int = 0
    """Of initialisation, order, noise, timesteps and caption choice."""
    precision: AutoDtype = "auto"
    """Number format of matrix products, by autocast; auto: bfloat16 where the hardware has it, else float32; a resumed training
    keeps what it began with. Weights and optimiser are always float32."""
    compile: bool = True
    """Compile the blocks; without a compiler on this machine it runs as it is, and says so."""
    attention: Literal["auto", "math"] = "auto"
    """Which kernel of torch's attention: auto lets torch choose; math is matrix products and a softmax, with which a step is
    half as fast again on CPUs for a few dozen tokens. Where blocks are compiled, the compiler chooses."""
    gradient_checkpointing: bool = False
    """Compute activations twice in place of keeping them: a third more time, far less memory."""
    device_tokens: int = 32_768
    """Patches that a device works on at once; a batch beyond it is accumulated. 128 images of 256 px, 8 of 1024 px: what XL/2
    and 80 GB allow; see trainer.plan for another network or GPU."""
    online: bool = False
    """Encode captions while training, for those who lack the disk: features made with --captions none."""
    text_encoder: str | None = None
    """Where the features' text encoder is, if not where they say; read with --online and --watch.prompts only."""
    vae: str | None = None
    """Where the features' VAE is, if not where they say; read for samples only."""
    licence: str = ""
    """Licence of the weights; the terms that the features carry are added."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Sizes of the network."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What it is trained for."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """How it learns."""
    ema: EmaConfig = field(default_factory=EmaConfig)
    """Average of the weights."""
    data: DataConfig = field(default_factory=DataConfig)
    """What it learns from."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When it is saved."""
    watch: WatchConfig = field(default_factory=WatchConfig)
    """What is written down."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """How workers share the work."""

    def __post_init__(self) -> None:
        ladder = tuple(Rung(**rung) if isinstance(rung, dict) else rung for rung in self.ladder)
        object.__setattr__(self, "ladder", ladder)
        problems = [f"{name} must be {bound}" for name, bound, holds in (*self._checks(), *self._part_checks()) if not holds]
        if problems:
            raise ValueError("; ".join(problems))

    def _checks(self) -> list[tuple[str, str, bool]]:
        optim, data = self.optim, self.data
        return [
            ("ladder", "one rung or more", bool(self.ladder) or self.stage == "all"),
            ("num_workers", "1 or more", self.num_workers >= 1),
            ("seed", "0 or more", self.seed >= 0),
            ("device_tokens", "1 or more", self.device_tokens >= 1),
            ("optim.lr", "above 0", optim.lr > 0),
            ("optim.warmup_steps", "0 or more", optim.warmup_steps >= 0),
            ("optim.weight_decay", "0 or more", optim.weight_decay >= 0),
            ("optim.betas", "in [0, 1)", all(0 <= beta < 1 for beta in optim.betas)),
            ("optim.eps", "above 0", optim.eps > 0),
            ("optim.gradient_clip", "above 0", optim.gradient_clip > 0),
            ("data.caption_weights", "0 or more", all(weight >= 0 for weight in data.caption_weights.values())),
            ("data.caption_dropout", "from 0 to below 1", 0 <= data.caption_dropout < 1),
            ("data.loader_threads", "0 or more", data.loader_threads >= 0),
            ("data.prefetch", "1 or more", data.prefetch >= 1),
        ]

    def _part_checks(self) -> list[tuple[str, str, bool]]:
        watch, kept = self.watch, self.checkpoint
        return [
            ("ema.half_life_images", "1 or more", self.ema.half_life_images >= 1),
            ("ema.rampup_ratio", "above 0", self.ema.rampup_ratio > 0),
            ("checkpoint.every_images", "1 or more", kept.every_images >= 1),
            ("checkpoint.keep_last", "1 or more", kept.keep_last >= 1),
            ("checkpoint.keep_every_images", "0 or more", kept.keep_every_images >= 0),
            ("watch.every_steps", "1 or more", watch.every_steps >= 1),
            ("watch.timestep_bands", "1 or more", watch.timestep_bands >= 1),
            ("watch.validation_images", "1 or more", watch.validation_images >= 1),
            ("watch.num_samples", "1 or more", watch.num_samples >= 1),
            ("watch.sample_steps", "1 to 1000", 1 <= watch.sample_steps <= 1000),
            ("watch.guidance_scale", "1 or more", watch.guidance_scale >= 1),
            ("watch.spike_factor", "above 1", watch.spike_factor > 1),
            ("watch.peak_tflops", "above 0", watch.peak_tflops is None or watch.peak_tflops > 0),
            ("distributed.max_failures", "0 or more", self.distributed.max_failures >= 0),
            ("distributed.cpus_per_worker", "1 or more", self.distributed.cpus_per_worker >= 1),
            ("distributed.timeout_s", "1 or more", self.distributed.timeout_s >= 1),
        ]

    @property
    def run_folder(self) -> str:
        """Where this stage's run is."""
        return f"{self.run_dir.rstrip('/')}/{self.stage}"

    @property
    def images(self) -> int:
        """Images seen at the end of the stage."""
        return sum(rung.images_seen for rung in self.ladder)

    def features_folder(self, rung: Rung) -> str:
        """The feature store of a rung."""
        return f"{self.features.rstrip('/')}/{self.stage}/{rung.resolution}"
