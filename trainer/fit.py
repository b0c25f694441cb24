"""Command that trains a network: `python -m trainer.fit --stage pixel|alignment|aesthetic|all`; --num_workers N uses Ray Train.

`--stage few_steps` distils the network of the stage aesthetic, so that it draws in four steps.

`--recipe cheap` has the stages alignment and aesthetic, and needs less compute than the paper's recipe.

A stage starts from the newest checkpoint of the stage before, and the same command again resumes it. SIGTERM,
Ctrl-C or a file STOP in the run's folder makes it save a checkpoint and end with exit code 130.
"""

import sys
from collections.abc import Sequence

from foundry.command_line import run_command
from foundry.errors import UserError
from foundry.reporting.lines import asked_format, choose_format, say
from foundry.units.cluster import check_paths
from trainer.config.train import TrainConfig
from trainer.stages import Stages, choose_stage, offered, recorded_recipe, stages_of

_INTERRUPTED = 130


def main(config: TrainConfig) -> int:
    """Trains one stage here or on Ray; returns 0 when it is done, 130 when it was stopped. Raises UserError."""
    from trainer.monitoring.tracking.process import check_trackers
    from trainer.training.start import check_start, check_workers

    check_paths([config.features, config.run_dir, *config.data.paths])
    _check_recipe(config)
    check_workers(config, config.num_workers)
    check_trackers(config.watch)
    check_start(config)
    if config.num_workers > 1:
        from trainer.training.ray_workers import train_on_ray

        done = train_on_ray(config)
    else:
        from trainer.training.loop import train_here

        done = train_here(config, device=config.device)
    return 0 if done else _INTERRUPTED


def _check_recipe(config: TrainConfig) -> None:
    """Raises UserError if the run was started with another recipe."""
    begun_by = recorded_recipe(config.run_folder)
    if begun_by not in (None, config.recipe):
        raise UserError(
            f"{config.run_folder} was started with the recipe {begun_by}, and {config.recipe} is asked for: give that one, or "
            "another run_dir",
            setting="recipe",
        )


def run(argv: Sequence[str] | None = None) -> int:
    """The command; `--stage all` is one for each stage of the recipe, and ends with the first that does not get to its end."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    choose_format(asked_format(arguments))
    try:
        stages = stages_of(arguments)
        chosen = choose_stage(arguments, offered(stages))
    except UserError as error:
        say(f"error: {error}", err=True)
        return 2
    return _run(arguments, chosen, stages)


def _run(arguments: list[str], chosen: list[str], stages: Stages) -> int:
    """The command with these arguments; `chosen` are the same, with what files say of the chosen stage."""

    def start(config: TrainConfig) -> int:
        """Trains one stage, or all of them in order. Raises UserError if all would begin at one and the same checkpoint."""
        if config.stage != "all":
            return main(config)
        if config.init_from is not None:
            raise UserError(
                f"--stage all --init_from {config.init_from}: no stage would follow the one before; give it to the first one, "
                f"by `stages: {{{next(iter(stages))}: {{init_from: …}}}}` in the file of --config, or train stage by stage"
            )
        codes = (run([*arguments, "--stage", stage]) for stage in stages)
        return next((code for code in codes if code), 0)

    return run_command(
        TrainConfig,
        start,
        prog="python -m trainer.fit",
        example="python -m trainer.fit --stage aesthetic",
        presets={"stage": offered(stages)},
        argv=chosen,
    )


if __name__ == "__main__":
    raise SystemExit(run())
