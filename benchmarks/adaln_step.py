"""Costs of a training step with adaLN-single and with per-block adaLN, for an existing network and features:

python -m benchmarks.adaln_step --run demo/training/alignment --features demo/features/alignment/64
"""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import print_report
from foundry.command_line import run_command
from foundry.errors import UserError
from foundry.hardware import auto_dtype


@dataclass(frozen=True, kw_only=True)
class CostsConfig:
    """Settings of the measurement."""

    run: str
    """Folder of a training on captions; its newest checkpoint gives the sizes of the network."""
    features: str
    """Features of the training, FEATURES/<stage>/<resolution>."""
    batch_size: int = 64
    """Number of samples in a step."""
    timed_steps: int = 30
    """Number of steps that are timed of each network, in turn."""


def main(config: CostsConfig) -> int:
    """Prints the figures; returns 0. Raises UserError for a training without a checkpoint."""
    import yaml

    from benchmarks.staged_adaln_costs import adaln_costs
    from trainer.monitoring.run_folder import CONFIG, newest_checkpoint

    run = Path(config.run)
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        raise UserError(f"{run} holds no checkpoint: train first")
    settings = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    figures = adaln_costs(
        checkpoint,
        Path(config.features),
        batch_size=config.batch_size,
        timed_steps=config.timed_steps,
        compiled=settings["compile"],
        attention=settings["attention"],
    )
    ratios = {name.removesuffix("_single"): name for name in figures if name.endswith("_single")}
    figures |= {f"{name}_ratio": figures[single] / figures[f"{name}_per_block"] for name, single in ratios.items()}
    print_report("adaLN", figures, dtype=auto_dtype())
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            CostsConfig,
            main,
            prog="python -m benchmarks.adaln_step",
            example="python -m benchmarks.adaln_step --run RUN --features FEATURES",
        )
    )
