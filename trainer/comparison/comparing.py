"""Comparison from features to a page: arms planned, trained seed by seed, measured, and told in tables.

RUN_DIR/
    comparison.json                 what is compared, which another command must not change; the images of each arm
    runs/<arm>/<seed>/<stage>/      the trainings, each a run of trainer.fit
    evaluations/<arm>/<seed>/       images and scores of a benchmark
    results.parquet, scores.parquet, summary.json, summary.md, page.html
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from foundry.errors import UserError
from foundry.hardware import AUTO
from foundry.reporting.lines import say
from foundry.storage.folder import Folder, store_errors
from foundry.storage.locations import is_local_path
from foundry.wording import counted
from trainer.comparison.arms import BASE, make_arms
from trainer.comparison.config import CompareConfig
from trainer.comparison.page import PAGE, SUMMARY_MD, write_page
from trainer.comparison.plan import ArmPlan, OpenedArm, claim_folder, find_rung, kept_images, open_arms, plan_images
from trainer.comparison.results import ALL, RESULTS, Compared, loss_is_comparable, training_rows, write_results
from trainer.comparison.scores import check_benchmark, score
from trainer.comparison.table import headline, markdown
from trainer.comparison.trainings import TIMED_STEPS, Training, make_training, time_step, train, with_precision_of
from trainer.distributed import Workers
from trainer.monitoring.run_folder import RunFolder
from trainer.training.networks import can_compile

_ROUNDS = 2
"""Number of times that each arm is timed, in turn with the others."""


def compare(config: CompareConfig) -> Compared:
    """Trains and measures what is not there yet, and writes what was found after each training. Raises UserError.

    A comparison that was told to stop (SIGTERM, Ctrl-C, a file STOP in a training's folder) returns with `is_done` false.
    """
    if not is_local_path(config.run_dir):
        raise UserError(f"{config.run_dir}: expected a folder on a disk, found a URL", setting="run_dir")
    rung = find_rung(config)
    arms = make_arms(config, rung)
    check_benchmark(config)
    kept = kept_images(config, arms)
    opened = open_arms(arms, num_workers=config.num_workers)
    if config.compile:
        can_compile(Workers())  # says so where it cannot
    compared = Compared(folder=Path(config.run_dir), plans=(), equal=config.equal, seeds=_seeds(config))
    with RunFolder(compared.folder, Workers()).held(wait_s=0.0):
        step_s = _time(config, opened, kept)
        if step_s is None:
            return compared
        plans = plan_images(config, opened, kept=kept, step_s=step_s)
        claim_folder(config, plans)
        return _train_all(config, replace(compared, plans=plans))


def _seeds(config: CompareConfig) -> range:
    return range(config.seed, config.seed + config.seeds)


def _time(config: CompareConfig, opened: Sequence[OpenedArm], kept: Mapping[str, int]) -> dict[str, float] | None:
    """Seconds of a step of the arms that get their images by them, taken in turn; None if it was told to stop.

    Base is timed with any other arm, since the machine may be another one than before.
    """
    new = [one for one in opened if one.arm.name not in kept]
    timed = [one for one in new if config.equal == "seconds" or (config.budget is not None and one.arm.name == BASE)]
    if timed and timed[0] is not opened[0]:
        timed = [opened[0], *timed]
    times: dict[str, list[float]] = {one.arm.name: [] for one in timed}
    for number in range(_ROUNDS):
        for one in timed:
            say(f"timing {TIMED_STEPS} steps of {one.arm.name}, {number + 1} of {_ROUNDS}")
            images = TIMED_STEPS * one.batch_size
            if (found := time_step(make_training(config, one.arm, seed=config.seed, images=images))) is None:
                return None
            times[one.arm.name].append(found)
    return {name: fmean(found) for name, found in times.items()}


def _train_all(config: CompareConfig, compared: Compared) -> Compared:
    """Trains all arms with a seed, then with the next one."""
    trainings = [
        (plan, make_training(config, plan.arm, seed=seed, images=plan.images))
        for seed in compared.seeds
        for plan in compared.plans
    ]
    left = sum(not training.is_over for _, training in trainings)
    there = f", {len(trainings) - left} of them there already" if left < len(trainings) else ""
    say(f"{headline(compared)}: {counted(len(trainings), 'training')}{there}")
    times: list[float] = []
    for plan, planned in trainings:
        training = with_precision_of(planned, trainings[0][1]) if config.precision == AUTO else planned
        is_new, started = not training.is_over, time.monotonic()
        if is_new:
            say(f"{training.arm}, seed {training.seed}: {plan.images:,} images; log: {training.log}")
            if not train(training):
                say("stopped; the same command resumes it")
                return _written(compared)
        compared = _with(compared, config, plan, training)
        if is_new:
            times.append(time.monotonic() - started)
            left_s = fmean(times) * (left - len(times))
            say(f"  {_outcome(compared, training)}; {times[-1]:.0f} s, about {left_s / 60:.1f} min left")
            _written(compared)
    compared = _written(replace(compared, is_done=True))
    say(f"\n{markdown(compared)}\n{compared.folder}: {RESULTS}, {SUMMARY_MD} and {PAGE}")
    return compared


def _with(compared: Compared, config: CompareConfig, plan: ArmPlan, training: Training) -> Compared:
    """The comparison with the results of a finished training."""
    if training.diverged:
        return replace(compared, diverged={**compared.diverged, (training.arm, training.seed): training.diverged})
    return replace(
        compared,
        rows=[*compared.rows, *training_rows(plan, training)],
        scores=[*compared.scores, *score(config, training)],
    )


def _outcome(compared: Compared, training: Training) -> str:
    """The loss at the end of a training, and that of base with the same seed."""
    last = {(row["arm"], row["seed"]): row["loss"] for row in compared.rows if row["is_last"] and row["band"] == ALL}
    own, base = (last.get((arm, training.seed)) for arm in (training.arm, BASE))
    if own is None:
        return f"no result: {training.diverged}"
    arms = {plan.arm.name: plan.arm for plan in compared.plans}
    is_comparable = training.arm != BASE and loss_is_comparable(arms[training.arm], arms[BASE], band=ALL)
    return f"validation loss {own:.4f}" + (f" ({own - base:+.4f} to {BASE})" if is_comparable and base is not None else "")


def _written(compared: Compared) -> Compared:
    """The same, after its files are written. Raises UserError if they cannot be."""
    with store_errors(Folder(str(compared.folder))):
        write_results(compared)
        write_page(compared)
    return compared
