"""Settings of a comparison of techniques: those of trainer.fit, and what is tried, how long, and with how many seeds."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from foundry.command_line import OPTION
from trainer.config.check import Check
from trainer.config.ladder import Rung
from trainer.config.network import NetworkConfig
from trainer.config.optim import OptimConfig
from trainer.config.techniques import STORED
from trainer.config.train import PAPER, SCRATCH, StageName, TrainConfig

Equal = Literal["flops", "seconds", "images"]
BATCH_SIZE = 64
"""Images of a step where no ladder is given."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig(TrainConfig):
    """Settings of `python -m trainer.compare`: those of the arm `base`, in which every other arm changes something."""

    arms: tuple[str, ...] = field(metadata={OPTION: "try"})
    """Arms to compare with base, each a technique (repa, repa_stop, sra2, layersync, dispersive, muon, muon_fused, adamw8bit,
    adapter1, adapter2, qk_norm, flow, tread, masking), a YAML file with settings of trainer.fit, or several joined by `+`; in a
    --config file, they are called `arms`."""
    seeds: int = 3
    """Number of seeds: seed, seed + 1, …; each arm is trained with each of them."""
    equal: Equal = "flops"
    """Measure of compute that is equal in all arms: flops (by the planner), seconds (timed at the start) or images."""
    budget: float | None = None
    """Minutes that a training of base takes, estimated at the start; validation is not included."""
    flops: float | None = None
    """Floating-point operations of a training of base, by the planner."""
    num_images: int | None = field(default=None, metadata={OPTION: "images"})
    """Number of images that a training of base sees; default: those of `ladder`, or what `budget` or `flops` allows."""
    validations: int = 8
    """Number of validations of a training, evenly spaced, the last one at its end."""
    teacher: str = STORED
    """Teacher of the arms repa and repa_stop: a hub id or folder, `mini`, or `stored` in the features."""
    benchmark: str | None = None
    """Benchmark that scores each trained network, as in trainer.evaluate; default: none, only the validation loss."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """Settings of trainer.evaluate for the benchmark, such as `{"judges": [...], "sampling": {"num_inference_steps": 20}}`."""

    stage: StageName = "alignment"
    """Stage whose features are read: pixel (classes), alignment or aesthetic (captions)."""
    run_dir: str = "./runs/compare"
    """Folder of the comparison. The same command again resumes it; more arms or seeds are added to the finished ones."""
    init_from: str | None = SCRATCH
    """Start of the weights in all arms: `scratch`, a checkpoint, or a run's folder."""
    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(width=384, depth=12, num_heads=6))
    """Sizes of the network; the default is DiT-S."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            lr=5e-4, schedule="cosine", warmup_steps=100, weight_decay=0.01, betas=(0.9, 0.99), eps=1e-8, gradient_clip=1.0
        )
    )
    """Optimiser and learning rate; the default suits short trainings of small networks."""

    def base(self, rung: Rung) -> TrainConfig:
        """The settings of the arm `base`, as trainer.fit takes them, for one resolution."""
        values = {one.name: getattr(self, one.name) for one in fields(TrainConfig)}
        conditioning = "class" if self.stage == "pixel" else self.conditioning
        return TrainConfig(**values | {"follows": None, "ladder": (rung,), "conditioning": conditioning})

    def _checks(self) -> list[Check]:
        given = [name for name in ("budget", "flops", "num_images") if getattr(self, name) is not None]
        return [
            *(check for check in super()._checks() if check[0] != "ladder"),
            ("stage", "pixel, alignment or aesthetic", self.stage != "all"),
            ("recipe", "paper, since arms start from the defaults here: give single settings", self.recipe == PAPER),
            ("ladder", "one resolution at most", len(self.ladder) <= 1),
            ("arms", "one or more", bool(self.arms)),
            ("seeds", "1 or more", self.seeds >= 1),
            ("validations", "1 or more", self.validations >= 1),
            ("budget, flops and images", "given one at most", len(given) <= 1),
            ("budget, flops or images", "given, or ladder", bool(given or self.ladder)),
            *((name, "above 0", getattr(self, name) > 0) for name in given),
            ("evaluation", "left out without benchmark", self.benchmark is not None or not self.evaluation),
        ]
