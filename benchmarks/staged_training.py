"""The paper's ideas at this scale: `python -m benchmarks.staged_training`, at most five hours on two idle cores.

In the reduced world (16 kinds, one object, 64 px), each training from three seeds, paired; see docs/experiments.md.

captions         a network trained on dense captions against one trained on alt text, by prompts of three styles
initialisation   alignment from the pixel stage by re-parameterisation, with a copy of the matching weights, and from scratch
adaln            adaLN-single against an adaLN in each block: parameters, memory, step time, loss
aesthetic        the aesthetic stage, by the shipped checkpoints

`--experiments captions adaln` runs some of them. Trainings and judgements are folders of `--out`; after a kill the same command
resumes. The table of each experiment is kept in OUT/<experiment>.md.
"""

import time

from benchmarks.report import print_report, recorded_dtypes
from benchmarks.results_folder import claim
from benchmarks.staged_config import StagedTrainingConfig
from foundry.command_line import run_command
from trainer.config.train import CONFIG_FILE


def main(config: StagedTrainingConfig) -> int:
    """Runs what is not done yet, prints tables and figures; returns 0."""
    from benchmarks.staged_experiments import EXPERIMENTS
    from benchmarks.staged_world import make_world

    claim(config.folder, config.identity())
    started = time.monotonic()
    if set(config.experiments) - {"aesthetic"}:
        make_world(config)
    figures: dict[str, float] = {"num_seeds": config.num_seeds}
    for name in config.experiments:
        outcome = EXPERIMENTS[name](config)
        (config.folder / f"{name}.md").write_text(outcome.markdown, encoding="utf-8")
        print(f"\n{outcome.markdown}", flush=True)
        figures |= outcome.figures
    print_report("Staged training", figures | {"this_start_s": time.monotonic() - started}, dtype=trained_dtypes(config))
    return 0


def trained_dtypes(config: StagedTrainingConfig) -> str | None:
    """The number formats that the trainings computed in, as their folders record them; None if there is no training."""
    return recorded_dtypes(path.parent for path in config.folder.glob(f"trainings/*/*/*/{CONFIG_FILE}"))


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            StagedTrainingConfig,
            main,
            prog="python -m benchmarks.staged_training",
            example="python -m benchmarks.staged_training --experiments captions initialisation",
        )
    )
