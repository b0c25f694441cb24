"""Settings of a training: one frozen dataclass, filled by a stage's function, a file and flags. Imports no torch."""

from dataclasses import dataclass, field
from typing import Any, Literal

from foundry.hardware import AutoDtype
from model.dit_config import DiTConfig, KVCompression, default_patch_size

StageName = Literal["pixel", "alignment", "aesthetic", "all"]
Sharding = Literal["ddp", "fsdp"]
Schedule = Literal["constant", "cosine"]
AspectRatio = Literal["bucket", "image"]
SCRATCH = "scratch"
DIFFUSION: Literal["diffusion"] = "diffusion"


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One step of a stage's ladder of resolutions."""

    resolution: int
    """Side of a square image in pixels; FEATURES/<stage>/<resolution> holds its features."""
    images: int
    """Images seen in training, repetitions counted; the last batch may exceed it."""
    batch_size: int
    """Images per optimiser step, over all workers."""
    position_scale: float | None = None
    """Divisor of positions; none: that of the rung before, interpolated (1 in the first rung of a new network)."""

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
    """Width of the network: channels per token."""
    depth: int = 28
    """Number of transformer blocks."""
    num_heads: int = 16
    """Attention heads per block."""
    patch_size: int = 0
    """Side of a patch, in latent pixels; 0: 1 where the VAE has 32 pixels per latent or more, else 2."""
    mlp_ratio: float = 4.0
    """Hidden channels of a block's MLP, as a multiple of the width."""
    micro_conditioning: bool = False
    """Condition on the original size and aspect ratio too. A checkpoint without it gains it, at first without an effect."""
    qk_norm: bool = False
    """Normalise queries and keys of self-attention (Sigma)."""
    kv_compression: KVCompression = field(default_factory=KVCompression)
    """Compression of the keys and values of self-attention (Sigma)."""

    def dit_config(
        self,
        *,
        conditioning: Literal["text", "class"],
        sample_size: int,
        in_channels: int,
        learned_variance: bool,
        downsampling: int = 8,
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
            patch_size=self.patch_size or default_patch_size(downsampling),
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
    """The training objective: see model/diffusion.py."""

    name: Literal["diffusion", "rectified_flow"] = DIFFUSION
    """Objective: diffusion (the paper's) or rectified_flow."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Arguments of the objective's class, by name; empty: its defaults."""

    @property
    def learned_variance(self) -> bool:
        """True where the network predicts a variance too."""
        return self.name == DIFFUSION and bool(self.settings.get("learned_variance", True))


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Settings of AdamW."""

    lr: float = 2e-5
    """Learning rate after the warm-up. Source: PixArt-alpha, Table 4."""
    schedule: Schedule = "constant"
    """Schedule of the learning rate: constant, or cosine (down to zero over each rung)."""
    warmup_steps: int = 1000
    """Steps of linear warm-up at the start of each rung. Source: the authors' code."""
    weight_decay: float = 0.03
    """Weight decay of matrices; norms, biases, embeddings and tables have none. Source: the authors' code (there: of all)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the first and second moment, per step."""
    eps: float = 1e-10
    """Term added to the denominator of the update. Source: the authors' code."""
    gradient_clip: float = 0.01
    """Maximum norm of the whole gradient; larger ones are scaled down to it. Source: the authors' code."""


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """The exponential moving average of the weights, which a checkpoint's `transformer/` holds."""

    half_life_images: int = 79_000_000
    """Half-life of the average, in images. Default: the paper's 0.9999 per step of 178 x 64 images."""
    rampup_ratio: float = 0.05
    """Upper bound of the half-life, as a share of the images seen in the rung, so that short runs have an average too (EDM)."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Settings of the captions that are read and of the loader."""

    caption_weights: dict[str, float] = field(default_factory=dict)
    """Weight of each caption variant, by name; one is drawn each time that a sample is read. Empty: equal weights, and
    `alt_text` for images without a caption."""
    caption_dropout: float = 0.1
    """Share of samples that are trained with the null caption, or without a class, from 0 to 1. Source: the authors' code."""
    loader_threads: int = 2
    """Threads that read batches ahead; 0: batches are read when they are needed. The order does not depend on it."""
    prefetch: int = 4
    """Number of batches that are read ahead."""
    aspect_ratio: AspectRatio = "bucket"
    """Aspect ratio that micro-conditioning reads: of the bucket to which an image is cropped, as in generation, or the original
    image's. Source: the authors' code."""
    skip: str | None = None
    """List of samples to leave out: a text file with a key on each line, or Parquet with a column `key`. The order of the other
    samples is then another one."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Intervals of checkpoints, and which of them are kept."""

    every_images: int = 2_000_000
    """Images between two checkpoints; one more is written at the end of each rung."""
    keep_last: int = 3
    """Number of newest checkpoints that are kept."""
    keep_every_images: int = 0
    """Keep for good the first checkpoint at or after each multiple of this many images; 0: none."""


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """Settings of monitoring: logs, validation, sample grids."""

    every_steps: int = 20
    """Steps between two lines of the log and rows of metrics.jsonl."""
    validate_every_images: int = 1_000_000
    """Images between two measurements of the validation loss; 0: never measure it."""
    validation_images: int = 1024
    """Maximum number of images that the validation loss is measured on."""
    timestep_bands: int = 4
    """Number of equal bands of timesteps that the validation loss is reported by."""
    sample_every_images: int = 2_000_000
    """Images between two grids of samples; 0: draw none."""
    prompts: tuple[str, ...] = ()
    """Prompts of the sample grids; empty: captions of the validation split, which need no text encoder."""
    num_samples: int = 8
    """Number of images of a grid where no prompts are given."""
    sample_steps: int = 20
    """Sampling steps of the sample grids."""
    guidance_scale: float = 4.5
    """Guidance scale of the sample grids; 1 or less: no guidance."""
    spike_factor: float = 3.0
    """Log the samples of a step whose loss exceeds this many times the median of the last 100 steps."""
    peak_tflops: float | None = None
    """Peak of a device for MFU, in 10^12 operations per second; none: looked up for known GPUs."""


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """Settings of training on several workers. Ray starts them where --num_workers is more than 1."""

    sharding: Sharding = "ddp"
    """Sharding: ddp (each worker has all weights) or fsdp (each has its shard of weights, gradients and optimiser; FSDP2)."""
    max_failures: int = 3
    """Number of times that lost workers are replaced, from the last checkpoint, before the training stops."""
    cpus_per_worker: int = 1
    """CPU cores per worker where there is no GPU: Ray reserves them, torch uses as many threads."""
    address: str | None = None
    """Address of a running Ray cluster. Default: RAY_ADDRESS, which a Ray job sets, else a local Ray that is started here."""
    timeout_s: int = 1800
    """Timeout of a worker that waits for another one, in seconds."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of `python -m trainer.fit`."""

    stage: StageName
    """Stage to train: pixel, alignment, aesthetic, or all (one after the other)."""
    conditioning: Literal["text", "class"] = "text"
    """Conditioning of the network: text (captions) or class."""
    follows: str | None = None
    """Stage whose newest checkpoint this one starts from."""
    ladder: tuple[Rung, ...] = ()
    """Ladder of resolutions that are trained one after the other."""
    features: str = "./features"
    """Folder of features that trainer.precompute wrote, local or a URL."""
    run_dir: str = "./runs"
    """Folder of runs; this one is written to run_dir/<stage>. The same command again resumes it."""
    init_from: str | None = None
    """Start of the weights: a checkpoint, a run's folder, or `scratch`; default: the newest checkpoint of the stage before."""
    num_workers: int = 1
    """Number of worker processes, one per GPU; more than 1 run on Ray Train."""
    device: str = "auto"
    """Device: cuda, cpu, …; auto: cuda if available."""
    seed: int = 0
    """Random seed for initialisation, data order, noise, timesteps and choice of captions."""
    precision: AutoDtype = "auto"
    """Number format of matrix products, by autocast; auto: bfloat16 if the hardware supports it, else float32. A resumed
    training keeps its format. Weights and optimiser are always float32."""
    compile: bool = True
    """Compile the blocks; without a C++ compiler on this machine the network runs uncompiled, and the log says so."""
    attention: Literal["auto", "math"] = "auto"
    """Attention kernel: auto lets torch choose; math is matrix products and a softmax, which makes a step half as fast again on
    CPUs for a few dozen tokens. If blocks are compiled, the compiler chooses."""
    gradient_checkpointing: bool = False
    """Recompute activations instead of storing them: a third more time, far less memory."""
    device_tokens: int = 32_768
    """Maximum number of patches per micro-batch; gradients of larger batches are accumulated. The default is 128 images of
    256 px or 8 of 1024 px, for XL/2 on 80 GB; see trainer.plan for another network or GPU."""
    online: bool = False
    """Encode captions while training, to save disk: for features made with --captions none."""
    text_encoder: str | None = None
    """Folder or hub id of the text encoder, if not as the features record it; used by --online and --watch.prompts only."""
    vae: str | None = None
    """Folder or hub id of the VAE, if not as the features record it; used for samples only."""
    licence: str = ""
    """Licence of the weights; the terms of the features are appended."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Sizes of a new network."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Training objective."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and learning rate."""
    ema: EmaConfig = field(default_factory=EmaConfig)
    """Moving average of the weights."""
    data: DataConfig = field(default_factory=DataConfig)
    """Choice of captions, and loading."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Intervals of checkpoints."""
    watch: WatchConfig = field(default_factory=WatchConfig)
    """Monitoring: log, validation, samples."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """Workers and sharding."""

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
            ("watch.guidance_scale", "0 or more", watch.guidance_scale >= 0),
            ("watch.spike_factor", "above 1", watch.spike_factor > 1),
            ("watch.peak_tflops", "above 0", watch.peak_tflops is None or watch.peak_tflops > 0),
            ("distributed.max_failures", "0 or more", self.distributed.max_failures >= 0),
            ("distributed.cpus_per_worker", "1 or more", self.distributed.cpus_per_worker >= 1),
            ("distributed.timeout_s", "1 or more", self.distributed.timeout_s >= 1),
        ]

    @property
    def run_folder(self) -> str:
        """The folder of this stage's run."""
        return f"{self.run_dir.rstrip('/')}/{self.stage}"

    @property
    def images(self) -> int:
        """Images seen at the end of the stage."""
        return sum(rung.images_seen for rung in self.ladder)

    def features_folder(self, rung: Rung) -> str:
        """The feature store of a rung."""
        return f"{self.features.rstrip('/')}/{self.stage}/{rung.resolution}"
