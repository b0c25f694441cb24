"""Command that trains a network with per-block adaLN: `python -m benchmarks.staged_adaln_fit`, by the settings of trainer.fit.

For benchmarks.staged_training; it starts from scratch, on one device.
"""

import sys
from collections.abc import Sequence

from foundry.command_line import run_command
from trainer.config.train import TrainConfig
from trainer.stages import STAGES, choose_stage

_INTERRUPTED = 130


def main(config: TrainConfig) -> int:
    """Trains; returns 0 when it is done, 130 when it was stopped."""
    from benchmarks.staged_adaln import train_per_block

    return 0 if train_per_block(config) else _INTERRUPTED


def run(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return run_command(
        TrainConfig,
        main,
        prog="python -m benchmarks.staged_adaln_fit",
        example="python -m benchmarks.staged_adaln_fit --stage alignment --init_from scratch",
        presets={"stage": STAGES},
        argv=choose_stage(list(sys.argv[1:] if argv is None else argv), STAGES),
    )


if __name__ == "__main__":
    raise SystemExit(run())
