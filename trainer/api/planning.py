"""Plans of trainings as objects: rows for a data frame, and the tables of the command."""

from typing import TYPE_CHECKING, Any

from dataset_builder.api.answer import Answer
from foundry.api.functions import takes_options
from foundry.errors import UserError
from trainer.planning.config import PlanConfig

if TYPE_CHECKING:
    from trainer.planning.config import RungPlan


class TrainingPlan(Answer):
    """Time, money, memory and disk of a training: a row for each resolution step of each stage.

    The columns: `stage`, `resolution` (side in pixels), `images_seen`, `passes`, `num_steps`, `batch_size`, `flops`,
    `gpu_days`, `days` (on all GPUs), `dollars` (null without a price), `gpu_gb` (memory of a GPU as the settings are),
    `fits`, `features_gb` (latents and bfloat16 captions on the disk). GB are 10^9 bytes.

    print() shows the tables of `python -m trainer.plan`; `rungs` has every figure.
    """

    def __init__(self, rungs: "list[RungPlan]", config: PlanConfig) -> None:
        import pyarrow as pa

        self.rungs = rungs
        self.config = config
        super().__init__(pa.Table.from_pylist([_figures(rung, config) for rung in rungs]))

    def __str__(self) -> str:
        from trainer.planning.tables.training import plan_table

        return plan_table(self.rungs, self.config)


@takes_options(PlanConfig, command="trainer.plan")
def plan_training(options: PlanConfig) -> TrainingPlan:
    """Computes GPU-days, money, memory and disk of a training. Needs the extra `train`; nothing is measured.

    Raises UserError for GPUs that cannot share a batch evenly, and for a file of settings that trainer.fit refuses.

    Example:

        from trainer import plan_training
        plan_training(stage="all", gpu="h100", num_gpus=64).df()[["stage", "resolution", "days", "dollars"]]
    """
    from trainer.planning.estimate import plan

    if options.json:
        raise UserError("json is an option of the command: .df() and .rungs have the figures", setting="json")
    return TrainingPlan(plan(options), options)


def _figures(rung: "RungPlan", config: PlanConfig) -> dict[str, Any]:
    memory = rung.memory_as_set
    gpu_bytes = memory.memory.total(memory.num_images)
    return {
        "stage": rung.stage,
        "resolution": rung.resolution,
        "images_seen": rung.images_seen,
        "passes": rung.passes,
        "num_steps": rung.num_steps,
        "batch_size": rung.batch_size,
        "flops": float(rung.flops),
        "gpu_days": rung.gpu_days,
        "days": rung.gpu_days / config.num_gpus,
        "dollars": rung.cost,
        "gpu_gb": gpu_bytes / 1e9,
        "fits": gpu_bytes <= config.device.memory_bytes,
        "features_gb": (rung.disk.latents + rung.disk.captions_bf16) / 1e9,
    }
