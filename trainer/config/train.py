"""Training: all settings of `python -m trainer.fit`."""

from dataclasses import dataclass, field
from typing import Literal

from foundry.hardware import AutoDtype
from trainer.config.adaptation import ControlConfig, LoraConfig
from trainer.config.check import Check, Checked
from trainer.config.data import DataConfig
from trainer.config.ladder import Rung
from trainer.config.network import NetworkConfig, ObjectiveConfig
from trainer.config.optim import EmaConfig, OptimConfig
from trainer.config.routing import RoutingConfig
from trainer.config.running import CheckpointConfig, DistributedConfig, WatchConfig
from trainer.config.techniques import DispersiveConfig, FewStepsConfig, LayerSyncConfig, RepaConfig, Sra2Config

StageName = Literal["pixel", "alignment", "aesthetic", "few_steps", "all"]
RecipeName = Literal["paper", "cheap"]
SCRATCH = "scratch"
PAPER: RecipeName = "paper"
CONFIG_FILE = "config.yaml"
"""The file in a run's folder that holds all settings of its last start."""
STARTS_FILE, STOP_FILE, LOCK_FILE = "starts.jsonl", "STOP", ".lock"
"""Other names in a run's folder, which trainer/monitoring/run_folder.py explains; here, readers need no torch."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of `python -m trainer.fit`."""

    stage: StageName
    """Stage to train: pixel, alignment, aesthetic, or all of these (one after the other); or few_steps, after them."""
    recipe: RecipeName = PAPER
    """Recipe that the stage's settings start from: paper (PixArt-alpha's) or cheap (newer techniques, less compute: see
    trainer/stages.py); default: that of the runs in run_dir, otherwise paper."""
    conditioning: Literal["text", "class"] = "text"
    """Conditioning of the network: text (captions) or class."""
    follows: str | None = None
    """Stage whose newest checkpoint this one starts from."""
    ladder: tuple[Rung, ...] = ()
    """Ladder of resolutions, trained one after the other."""
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
    """Number format of matrix products, by autocast; auto: bfloat16 if the hardware supports it, otherwise float32. A resumed
    training keeps its format. Weights and optimiser are always float32."""
    compile: bool = True
    """Compile the blocks; without a C++ compiler on this machine the network runs uncompiled, and the log says so."""
    attention: Literal["auto", "math"] = "auto"
    """Attention kernel: auto lets torch choose; math uses matrix products and a softmax, which makes a step 1.5 times as fast
    on CPUs for a few dozen tokens. If blocks are compiled, the compiler chooses."""
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
    repa: RepaConfig = field(default_factory=RepaConfig)
    """REPA: alignment with a vision tower."""
    sra2: Sra2Config = field(default_factory=Sra2Config)
    """SRA 2: alignment with the clean latents."""
    layersync: LayerSyncConfig = field(default_factory=LayerSyncConfig)
    """LayerSync: alignment with a later block."""
    dispersive: DispersiveConfig = field(default_factory=DispersiveConfig)
    """Dispersive loss: samples driven apart."""
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    """Token routing: TREAD or masking."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """LoRA: trains an adapter instead of the weights."""
    control: ControlConfig = field(default_factory=ControlConfig)
    """Control: trains copies of the first blocks, which follow a control image, instead of the weights."""
    few_steps: FewStepsConfig = field(default_factory=FewStepsConfig)
    """Distillation to few steps."""
    data: DataConfig = field(default_factory=DataConfig)
    """Choice of captions, and data loading."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Intervals of checkpoints."""
    watch: WatchConfig = field(default_factory=WatchConfig)
    """Monitoring: log, validation, samples."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """Workers and sharding."""

    def __post_init__(self) -> None:
        ladder = tuple(Rung(**rung) if isinstance(rung, dict) else rung for rung in self.ladder)
        object.__setattr__(self, "ladder", ladder)
        problems = [f"{name} must be {bound}" for name, bound, holds in self._checks() if not holds]
        if problems:
            raise ValueError("; ".join(problems))

    def _checks(self) -> list[Check]:
        parts: dict[str, Checked] = {
            "objective": self.objective,
            "optim": self.optim,
            "ema": self.ema,
            "repa": self.repa,
            "sra2": self.sra2,
            "layersync": self.layersync,
            "dispersive": self.dispersive,
            "routing": self.routing,
            "lora": self.lora,
            "control": self.control,
            "few_steps": self.few_steps,
            "data": self.data,
            "checkpoint": self.checkpoint,
            "watch": self.watch,
            "distributed": self.distributed,
        }
        control = self.control
        losses = ("repa", "sra2", "layersync", "dispersive", "routing")
        beside_few_steps = [name for name in losses if getattr(self, name).is_on]
        beside = [name for name in ("lora", "few_steps") if getattr(self, name).is_on] + beside_few_steps
        return [
            ("ladder", "one rung or more", bool(self.ladder) or self.stage == "all"),
            ("num_workers", "1 or more", self.num_workers >= 1),
            ("seed", "0 or more", self.seed >= 0),
            ("device_tokens", "1 or more", self.device_tokens >= 1),
            ("optim.name", "adamw or adamw8bit with lora", not self.lora.is_on or self.optim.name != "muon"),
            ("optim.name", "adamw or adamw8bit with control", not control.is_on or self.optim.name != "muon"),
            ("conditioning", "text with control", not control.is_on or self.conditioning == "text"),
            (
                "control",
                f"off with {' and '.join(beside)}",
                not control.is_on or not beside,
            ),
            (
                "watch.prompts",
                "none with control, since they have no control images: samples then show the validation split",
                not control.is_on or not self.watch.prompts,
            ),
            ("conditioning", "text with few_steps", not self.few_steps.is_on or self.conditioning == "text"),
            (
                "few_steps",
                f"off with {' and '.join(beside_few_steps)}",
                not self.few_steps.is_on or not beside_few_steps,
            ),
            (
                "few_steps.method",
                "consistency for the objective diffusion",
                self.few_steps.method != "rectification" or self.objective.name == "rectified_flow",
            ),
            *((f"{name}.{setting}", bound, holds) for name, part in parts.items() for setting, bound, holds in part.checks()),
        ]

    @property
    def run_folder(self) -> str:
        """The folder of this stage's run."""
        return f"{self.run_dir.rstrip('/')}/{self.stage}"

    @property
    def images(self) -> int:
        """Images seen at the end of the stage."""
        return sum(rung.images_seen for rung in self.ladder)

    @property
    def features_stage(self) -> str:
        """The stage whose features are read: a distillation has those of the stage that it follows."""
        return self.follows if self.few_steps.is_on and self.follows else self.stage

    def features_folder(self, rung: Rung) -> str:
        """The feature store of a rung."""
        return f"{self.features.rstrip('/')}/{self.features_stage}/{rung.resolution}"
