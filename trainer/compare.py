"""Command that measures what techniques are worth on your data: `python -m trainer.compare --features F --try repa muon …`.

Trains a small network without techniques, and once with each, with paired seeds and equal compute; compares validation
losses, scores and costs. The same command again resumes it. Its files are described in trainer/comparison/comparing.py.
"""

import sys
from collections.abc import Sequence

from foundry.command_line import run_command
from foundry.errors import UserError
from foundry.reporting.lines import asked_format, choose_format, say
from foundry.units.cluster import check_paths
from trainer.comparison.config import CompareConfig
from trainer.stages import STAGES, choose_stage

_INTERRUPTED = 130


def main(config: CompareConfig) -> int:
    """Trains, prints the tables and writes the page; returns 0 when it is done, 130 when it was stopped. Raises UserError."""
    from trainer.comparison.comparing import compare

    files = [word for word in config.arms if word.endswith((".yaml", ".yml"))]
    check_paths([config.features, config.run_dir, *config.data.paths, *files])
    return 0 if compare(config).is_done else _INTERRUPTED


def run(argv: Sequence[str] | None = None) -> int:
    """The command."""
    arguments = sys.argv[1:] if argv is None else argv
    choose_format(asked_format(arguments))
    try:
        chosen = choose_stage(arguments, STAGES, default=CompareConfig.stage)
    except UserError as error:
        say(f"error: {error}", err=True)
        return 2
    return run_command(
        CompareConfig,
        main,
        prog="python -m trainer.compare",
        example="python -m trainer.compare --features features --try repa muon adapter1+muon --images 200000",
        argv=chosen,
    )


if __name__ == "__main__":
    raise SystemExit(run())
