"""Command that shows runs in TensorBoard: `python -m trainer.tensorboard RUN …` writes RUN/tensorboard of metrics and samples.

Then run `tensorboard --logdir RUNS`. The horizontal axis counts images seen. Run it again, or with --follow_s, to add new rows.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from foundry.command_line import run_command


@dataclass(frozen=True)
class TensorBoardConfig:
    """Settings of `python -m trainer.tensorboard`."""

    runs: list[str]
    """Folders of runs, such as runs/aesthetic."""
    follow_s: float = 0.0
    """Seconds between two looks for new rows, until Ctrl-C; 0: look once."""

    def __post_init__(self) -> None:
        if not self.runs or self.follow_s < 0:
            raise ValueError("expected one run or more, and follow_s of 0 or more")


def main(config: TensorBoardConfig) -> int:
    """Writes the event files; returns 0."""
    from trainer.monitoring.tensorboard import RunReader

    readers = [RunReader(Path(run)) for run in config.runs]
    while True:
        for reader in readers:
            reader.read()
        if not config.follow_s:
            return 0
        time.sleep(config.follow_s)


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            TensorBoardConfig,
            main,
            prog="python -m trainer.tensorboard",
            example="python -m trainer.tensorboard runs/alignment",
            positional=("runs",),
        )
    )
