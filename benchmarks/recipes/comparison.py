"""Experiments run by trainer.compare: their files of settings, the call, and what came of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.recipes.experiments import QUICK, Experiment, Settings
from foundry.command_line import run_command
from foundry.errors import UserError
from foundry.storage.folder import new_file
from trainer.comparison.config import CompareConfig

BASE_FILE = "benchmarks/recipes/experiments.yaml"


def write_settings(experiment: Experiment, folder: Path, *, features: Path, num_seeds: int, quick: bool) -> Path:
    """Writes a file for each arm and compare.yaml, with which trainer.compare runs the experiment; returns that."""
    arms = folder / "arms"
    arms.mkdir(parents=True, exist_ok=True)
    for name, settings in experiment.arms.items():
        _write(arms / f"{name}.yaml", settings)
    common = yaml.safe_load(Path(BASE_FILE).read_text(encoding="utf-8"))
    places = {
        "features": str(features),
        "run_dir": str(folder / "comparison"),
        "arms": [str(arms / f"{name}.yaml") for name in experiment.arms],
        "seeds": num_seeds,
    }
    for changes in (QUICK if quick else {}, experiment.base, places):
        common = _merged(common, changes)
    _write(folder / "compare.yaml", common)
    return folder / "compare.yaml"


def read_comparison(path: Path) -> CompareConfig:
    """The settings of a file, as `python -m trainer.compare --config` reads it. Raises UserError if that would refuse it."""
    found: list[CompareConfig] = []

    def keep(config: CompareConfig) -> int:
        found.append(config)
        return 0

    argv = ["--config", str(path)]
    if run_command(CompareConfig, keep, prog="python -m trainer.compare", example="", argv=argv):
        raise UserError(f"python -m trainer.compare would not start with {path}")
    return found[0]


def compare_arms(path: Path) -> tuple[str, dict[str, float], bool]:
    """Trains and measures what is not there yet; returns the tables, the figures by name, and whether it is done."""
    from trainer.comparison.comparing import compare

    compared = compare(read_comparison(path))
    summary = json.loads((compared.folder / "summary.json").read_text(encoding="utf-8"))
    return (compared.folder / "summary.md").read_text(encoding="utf-8"), figures(summary), compared.is_done


def figures(summary: Mapping[str, Any]) -> dict[str, float]:
    """Figures of a summary.json: means of losses over all timesteps and of scores over all prompts, with the differences to
    base.

    `…_minus_base` is the mean paired difference, `…_half_width` half of its 95 % interval.
    """
    found: dict[str, float] = {}
    for figure in summary["figures"]:
        is_loss = figure["kind"] == "loss" and figure["name"] == "all"
        if not is_loss and not (figure["kind"] == "score" and figure["name"].startswith("all prompts: ")):
            continue
        measure = "loss" if is_loss else figure["name"].removeprefix("all prompts: ")
        for arm, estimate in figure["arms"].items():
            name = "_".join(f"{arm} {measure}".replace("-", "_").split())
            found[name] = estimate["mean"]
            difference = estimate["difference"] or {}
            kept = {"minus_base": difference.get("mean"), "half_width": difference.get("half_width")}
            found |= {f"{name}_{part}": value for part, value in kept.items() if value is not None}
    return found


def _merged(below: Settings, above: Settings) -> dict[str, Any]:
    """Both, section by section; captions, whose names are the user's, as a whole."""
    merged = dict(below)
    for name, value in above.items():
        is_section = isinstance(value, Mapping) and isinstance(below.get(name), Mapping) and name != "caption_weights"
        merged[name] = _merged(below[name], value) if is_section else value
    return merged


def _write(path: Path, settings: Settings) -> None:
    with new_file(path) as partial:
        partial.write_text(yaml.safe_dump(_plain(settings), sort_keys=False), encoding="utf-8")


def _plain(value: Any) -> Any:
    return {key: _plain(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value
