"""Command that trains: `python -m trainer.fit --stage pixel|alignment|aesthetic|all`, here or by --num_workers N on Ray Train.

A stage starts from the newest checkpoint of the stage before, and the same command again resumes it. SIGTERM,
Ctrl-C or a file STOP in the run's folder has it save a checkpoint and end with exit code 130.
"""

import sys
from collections.abc import Sequence

from foundry.command_line import run_command
from foundry.errors import UserError
from foundry.units.cluster import check_paths
from trainer.config.train import TrainConfig
from trainer.stages import STAGES, choose_stage

_INTERRUPTED = 130


def main(config: TrainConfig) -> int:
    """Trains one stage here or on Ray; returns 0 when it is done, 130 when it was stopped. Raises UserError."""
    from trainer.training.start import check_start, check_workers

    check_paths([config.features, config.run_dir, *config.data.paths])
    check_workers(config, config.num_workers)
    check_start(config)
    if config.num_workers > 1:
        from trainer.training.ray_workers import train_on_ray

        done = train_on_ray(config)
    else:
        from trainer.training.loop import train_here

        done = train_here(config, device=config.device)
    return 0 if done else _INTERRUPTED


def run(argv: Sequence[str] | None = None) -> int:
    """The command; `--stage all` is three of them, and ends with the first that does not get to its end."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def start(config: TrainConfig) -> int:
        """Trains one stage, or all of them in order. Raises UserError where all would begin at one and the same checkpoint."""
        if config.stage != "all":
            return main(config)
        if config.init_from is not None:
            raise UserError(
                f"--stage all --init_from {config.init_from}: no stage would follow the one before; give it to the first one, "
                "by `stages: {pixel: {init_from: …}}` in the file of --config, or train from --stage alignment on"
            )
        codes = (run([*arguments, "--stage", stage]) for stage in STAGES)
        return next((code for code in codes if code), 0)

    try:
        chosen = choose_stage(arguments, STAGES)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return run_command(
        TrainConfig,
        start,
        prog="python -m trainer.fit",
        example="python -m trainer.fit --stage aesthetic",
        presets={"stage": STAGES},
        argv=chosen,
    )


if __name__ == "__main__":
    raise SystemExit(run())
