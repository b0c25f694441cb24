"""The four comparisons of the staged training: which trainings each needs, how they are judged, and its tables."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.staged_config import MEASUREMENTS, Experiment, StagedTrainingConfig
from benchmarks.staged_judgement import STYLES, WORLD_METRICS, frechet_distance, judge, judge_checkpoint, style_share
from benchmarks.staged_tables import Values, figures, table
from benchmarks.staged_trainings import (
    ALT_TEXT,
    COPIED,
    PER_BLOCK,
    REPARAMETERISED,
    SCRATCH,
    SCRATCH_EQUAL_IMAGES,
    SCRATCH_EQUAL_OPERATIONS,
    Arm,
    last_loss,
    train,
    validation_losses,
)
from benchmarks.staged_world import features_folder

Measures = Mapping[str, float]
_COSTS = {
    "parameters": ("parameters, thousands", 1e-3),
    "parameters_xl": ("parameters of XL/2, thousands", 1e-3),
    "memory_bytes": ("memory of a training step, MB", 1e-6),
    "step_s": ("training step, all in one number format, ms", 1e3),
    "step_s_float32": ("training step, all in float32, ms", 1e3),
    "step_s_as_trained": ("training step, modulation in float32, ms", 1e3),
}
"""Words, and the unit they name in that of the figures."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of an experiment."""

    markdown: str
    figures: Mapping[str, float]


def captions(config: StagedTrainingConfig) -> Outcome:
    """Dense captions against alt text, both from scratch: the same images, orders and noise, other texts."""

    def measure(run: Path) -> Measures:
        judged = {style: judge(run, config, style) for style in STYLES}
        named = {f"{name}, {STYLES[style]}": value for style, found in judged.items() for name, value in found.items()}
        return {"validation loss, own captions": last_loss(run), **named}

    values = _measured({"dense": SCRATCH, "alt_text": ALT_TEXT}, measure, config)
    return _outcome(values, against="alt_text", head="prompts", prefix="captions", title="Dense captions against alt text")


def initialisation(config: StagedTrainingConfig) -> Outcome:
    """Alignment from the pixel stage by re-parameterisation or with a copy of the matching weights, and from scratch in three
    lengths.

    Within the training, losses are compared at equal numbers of images only: the longer trainings have none there.
    """
    places = [config.images * part // MEASUREMENTS for part in (1, 2, 4)]

    def measure(run: Path) -> Measures:
        losses = validation_losses(run)
        within = {f"validation loss after {place:,} images": losses[place] for place in places if place in losses}
        return {**within, "validation loss at the end": last_loss(run), **judge(run, config, "person")}

    arms = [REPARAMETERISED, COPIED, SCRATCH, SCRATCH_EQUAL_OPERATIONS, SCRATCH_EQUAL_IMAGES]
    values = _measured({arm.name: arm for arm in arms}, measure, config)
    title = "Alignment from the pixel stage"
    return _outcome(values, against="reparameterised", head="measure", prefix="initialisation", title=title)


def adaln(config: StagedTrainingConfig) -> Outcome:
    """adaLN-single against per-block adaLN: what they cost, and the loss of both from scratch."""
    arms = {"single": SCRATCH, "per_block": PER_BLOCK}
    values = _measured(arms, lambda run: {"validation loss": last_loss(run)}, config)
    costs = _adaln_costs(config)
    title = "adaLN-single against per-block adaLN"
    outcome = _outcome(values, against="per_block", head="at the end", prefix="adaln", title=title)
    lines = ["| cost | single | per block | single / per block |", "|---|---|---|---|"]
    for measure, (words, scale) in _COSTS.items():
        single, per_block = (costs[f"{measure}_{name}"] for name in arms)
        lines.append(f"| {words} | {single * scale:,.1f} | {per_block * scale:,.1f} | {single / per_block:.3f} |")
    markdown = f"{outcome.markdown}\n" + "\n".join(lines) + "\n"
    return Outcome(markdown=markdown, figures={**outcome.figures, **{f"adaln_{name}": cost for name, cost in costs.items()}})


def aesthetic(config: StagedTrainingConfig) -> Outcome:
    """The shipped checkpoints before and after the aesthetic stage, by the prompts of the whole small world."""
    from model.formats.checkpoint import checkpoint_fingerprint

    values: dict[str, dict[str, list[float]]] = {}
    for stage, checkpoint in zip(("alignment", "aesthetic"), config.shipped, strict=True):
        out = config.folder / "judgements" / "shipped" / checkpoint_fingerprint(Path(checkpoint))
        person = out / "person"
        found = judge_checkpoint(checkpoint, person, config, style="person", arguments=[], metrics=WORLD_METRICS)
        share = style_share(checkpoint, out / "alt_text", config) if config.style else {}
        values[stage] = {name: [value] for name, value in {**found, **share, **frechet_distance(person)}.items()}
    title = "The aesthetic stage of the shipped network"
    return _outcome(values, against="alignment", head="prompts", prefix="aesthetic", title=title)


EXPERIMENTS: Mapping[Experiment, Callable[[StagedTrainingConfig], Outcome]] = {
    "captions": captions,
    "initialisation": initialisation,
    "adaln": adaln,
    "aesthetic": aesthetic,
}


def _measured(arms: Mapping[str, Arm], measure: Callable[[Path], Measures], config: StagedTrainingConfig) -> Values:
    """Trains every arm with every seed, all arms of a seed first, and measures them."""
    seeds: dict[str, list[Measures]] = {name: [] for name in arms}
    for seed in range(config.num_seeds):
        for name, arm in arms.items():
            seeds[name].append(measure(train(arm, seed, config)))
    return {name: _by_measure(found) for name, found in seeds.items()}


def _by_measure(seeds: Sequence[Measures]) -> dict[str, list[float]]:
    return {name: [found[name] for found in seeds] for name in seeds[0]}


def _outcome(values: Values, *, against: str, head: str, prefix: str, title: str) -> Outcome:
    markdown = f"### {title}\n\n{table(values, against=against, head=head)}"
    return Outcome(markdown=markdown, figures=figures(values, against=against, prefix=prefix))


def _adaln_costs(config: StagedTrainingConfig) -> dict[str, float]:
    """Measured once and kept."""
    from benchmarks.staged_adaln_costs import adaln_costs
    from trainer.monitoring.run_folder import CONFIG, newest_checkpoint

    kept = config.folder / "adaln_costs_by_format.json"
    if not kept.exists():
        run = train(SCRATCH, 0, config)
        checkpoint, settings = newest_checkpoint(run), yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
        assert checkpoint is not None, "it was trained"
        print("timing training steps in turn", flush=True)
        costs = adaln_costs(
            checkpoint,
            features_folder(config, "alignment"),
            batch_size=config.batch_size,
            timed_steps=config.timed_steps,
            compiled=settings["compile"],
            attention=settings["attention"],
        )
        kept.write_text(json.dumps(costs) + "\n", encoding="utf-8")
    found: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
    return found
