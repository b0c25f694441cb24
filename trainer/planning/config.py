"""Settings of a plan, and the figures that it answers with. The arithmetic is in estimate.py, the text in table.py."""

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from trainer.config.running import Sharding
from trainer.config.train import RecipeName, StageName
from trainer.data.passes import count_passes
from trainer.monitoring.gpus import GPUS, Gpu

if TYPE_CHECKING:
    from trainer.planning.memory import TrainingMemory
    from trainer.planning.techniques import TechniqueCost


@dataclass(frozen=True, kw_only=True)
class ProjectAssumptions:
    """What a plan of a whole project assumes beyond the training."""

    kept: float = 1.0
    """Share of the captioned images (0 to 1) that selection keeps for training."""
    image_kb: float = 300
    """Mean size of an image file in kB (1,000 bytes)."""
    captions_per_image: int = 1
    """Captions that the captioner writes for each image."""
    captioner_parameters: float = 7e9
    """Parameters of the captioning model."""
    captioner_images_per_s: float | None = None
    """Captions per second of one GPU; default: 20 for a model of 8e9 parameters on an H200, scaled by the GPU's peak and the
    model's size. Your `captioner.run` says yours."""
    pue: float = 1.56
    """Power usage effectiveness: the energy of the data centre for each unit that its machines take; the default is the
    industry's average (Uptime Institute, Global Data Center Survey 2024)."""
    grams_co2_per_kwh: float = 445
    """CO2 of a kilowatt-hour; the default is the world's average of 2024 (IEA, Electricity 2025)."""

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.kept <= 1:
            problems.append(f"assume.kept must be above 0 and at most 1, found {self.kept}")
        if self.pue < 1:
            problems.append(f"assume.pue must be at least 1, found {self.pue}")
        if self.grams_co2_per_kwh < 0:
            problems.append(f"assume.grams_co2_per_kwh must be at least 0, found {self.grams_co2_per_kwh}")
        names = ("image_kb", "captions_per_image", "captioner_parameters", "captioner_images_per_s")
        numbers = {name: value for name in names if (value := getattr(self, name)) is not None}
        problems += [f"assume.{name} must be above 0, found {value}" for name, value in numbers.items() if value <= 0]
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Settings of `python -m trainer.plan`."""

    stage: StageName | None = None
    """Stage to plan: pixel, alignment, aesthetic, few_steps, or all (without few_steps); default: the one that the file of
    --fit_config names, else all."""
    recipe: RecipeName | None = None
    """Recipe of the stages, as in trainer.fit; default: the one named in the --fit_config file, otherwise paper."""
    fit_config: str | None = None
    """YAML file with the settings for trainer.fit; default: the settings of the stages."""
    gpu: str = "h100"
    """GPU: v100, a100-40gb, a100, a10, l4, l40s, rtx3090, rtx4090, h100-pcie, h100, h200, b200 or mi300x."""
    num_gpus: int = 64
    """Number of GPUs."""
    utilisation: float = 0.3
    """Share of a GPU's peak speed that training uses, an assumption. The paper's rows imply 0.07 to 0.28; a run's log has
    yours."""
    price: float | None = None
    """Price in dollars per GPU-hour; default: a rough price for the GPU, see trainer/monitoring/gpus.py."""
    peak_tflops: float | None = None
    """Peak of the GPU in 10^12 operations per second; default: as in its data sheet."""
    memory_gb: float | None = None
    """Memory of the GPU in 10^9 bytes; default: as in its data sheet."""
    gradient_checkpointing: bool = False
    """Count GPU-days with gradient checkpointing, even if the file does not set it; memory is shown with and without."""
    num_images: int | None = None
    """Number of images in a stage's data set, for passes and disk, each seen once per pass; default: the samples of its
    features if they exist, as `data.skip` and `data.weights` choose them, otherwise the paper's 1M, 10M and 14M."""
    caption_tokens: float = 120
    """Mean length of the captions in T5 tokens; the default, the longest that T5 reads, is the upper bound."""
    caption_variants: int = 1
    """Number of captions stored per image."""
    latent_channels: int = 4
    """Latent channels of the VAE."""
    latent_variance: bool = True
    """Count a log-variance for each latent, as for AutoencoderKL; false for AutoencoderDC, which only gives means."""
    downsampling: int = 8
    """Downsampling of the VAE: pixels per latent, along a side."""
    teacher_width: int = 768
    """Channels of the vision tower whose features are stored for REPA; the default is DINOv2-B's."""
    caption_width: int = 4096
    """Channels of the text encoder's tokens."""
    project: bool = False
    """Plan captions, scores and features too: time, money, disk, bytes read and CO2 of each step from images to model."""
    assume: ProjectAssumptions = field(default_factory=ProjectAssumptions)
    """Assumptions of --project."""
    json: bool = False
    """Print one line of JSON instead of the tables."""

    def __post_init__(self) -> None:
        problems = []
        if self.gpu not in GPUS:
            problems.append(f"gpu: expected one of {', '.join(GPUS)} (another one: peak_tflops, memory_gb), found {self.gpu}")
        if not 0 < self.utilisation <= 1:
            problems.append(f"utilisation: expected more than 0 and at most 1, found {self.utilisation}")
        values = asdict(self).items()
        numbers = {name: value for name, value in values if isinstance(value, int | float) and not isinstance(value, bool)}
        problems += [f"{name}: expected a positive number, found {value}" for name, value in numbers.items() if value <= 0]
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def device(self) -> Gpu:
        """The GPU with the figures given."""
        gpu = GPUS[self.gpu]
        return replace(
            gpu,
            peak_flops=gpu.peak_flops if self.peak_tflops is None else self.peak_tflops * 1e12,
            memory_bytes=gpu.memory_bytes if self.memory_gb is None else int(self.memory_gb * 1e9),
            price=gpu.price if self.price is None else self.price,
        )


@dataclass(frozen=True)
class DatasetSize:
    """Number of images that a stage learns from, and the source of that number."""

    num_images: int
    source: str
    """The option, the features or the paper that gives the number."""
    weighed: float | None = None
    """Images of a pass, in which each sample is seen as often as its weight says; none: each is seen once."""

    @property
    def images_per_pass(self) -> float:
        """Images of a pass."""
        return self.num_images if self.weighed is None else self.weighed


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Memory of a GPU under one sharding, with or without gradient checkpointing."""

    sharding: Sharding
    num_shards: int
    """Number of GPUs that share the weights."""
    gradient_checkpointing: bool
    memory: "TrainingMemory"
    num_images: int
    """Images of a micro-batch: the GPU's share of the batch, limited by device_tokens."""
    as_set: bool
    """True for the sharding and checkpointing that the training's settings ask for."""


@dataclass(frozen=True, kw_only=True)
class DiskPlan:
    """Bytes of a rung's features; captions are in the first rung of a stage alone, the others share them."""

    latents: float
    captions_bf16: float
    captions_int8: float
    texts: float
    """Bytes of the texts alone, for training that encodes captions itself (--online)."""


@dataclass(frozen=True, kw_only=True)
class EncodingPlan:
    """FLOPs of `trainer.precompute` for a rung; captions are in the first rung of a stage alone, the others share them."""

    flops_per_image: float
    """FLOPs of the VAE's encoder per image."""
    flops_per_caption: float
    """FLOPs of the text encoder per caption; 0: none is encoded for this rung."""
    flops: float
    """FLOPs of all images and captions."""
    gpu_hours: float
    """Hours of one GPU at the plan's share of its peak."""


@dataclass(frozen=True, kw_only=True)
class ReadingPlan:
    """Bytes of features that all GPUs together read per second, by the storage of captions."""

    bf16: float
    int8: float
    online: float
    """Bytes if only texts are stored."""


@dataclass(frozen=True, kw_only=True)
class RungPlan:
    """A rung of a stage."""

    stage: str
    resolution: int
    num_steps: int
    batch_size: int
    images_seen: int
    dataset: DatasetSize
    flops_per_image: float
    """FLOPs of the network per image, forward and backward, without recomputation."""
    optimizer_flops: float
    """FLOPs of the optimiser per step, over all GPUs: Muon's matrix products."""
    gpu_days: float
    cost: float | None
    """Cost in dollars; none if no price is known."""
    patches: int
    """Patches of an image."""
    techniques: tuple["TechniqueCost", ...] = ()
    """Costs that enabled techniques add; they are in gpu_days and memory, not in flops_per_image."""
    lora_values: int = 0
    """Values of the LoRA that is trained in place of the weights; 0: there is none."""
    control_values: int = 0
    """Values of the control likewise."""
    memory: tuple[MemoryPlan, ...]
    disk: DiskPlan
    encoding: EncodingPlan | None
    """Work of making the features; None for encoders that a plan does not know."""
    images_per_s: float
    """Images per second, of all GPUs together."""
    reading: ReadingPlan
    routed: float = 0.0
    """Share of the images that are trained with token routing; `flops_per_image` is the mean of all."""
    routing_warning: str = ""
    """A warning where routing does not pay; empty: it does, or is off."""
    unrouted: str = ""
    """Reason why this resolution is trained without routing although it is on."""

    @property
    def passes(self) -> float:
        """Number of times that each image is seen."""
        return count_passes([(self.images_seen, self.dataset.images_per_pass)])

    @property
    def memory_as_set(self) -> MemoryPlan:
        """The memory under the settings of the training."""
        return next(plan for plan in self.memory if plan.as_set)

    @property
    def flops(self) -> float:
        """FLOPs of all images seen, with those of techniques, and of all steps of the optimiser."""
        per_image = self.flops_per_image + sum(cost.mean_flops for cost in self.techniques)
        return self.images_seen * per_image + self.num_steps * self.optimizer_flops
