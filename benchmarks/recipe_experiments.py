"""Techniques of recipes measured in the small world: `python -m benchmarks.recipe_experiments --only T1`, hours on two cores.

T1  Muon with matrices split and fused against AdamW, three rates each
T2  SRA 2, LayerSync and the dispersive loss, alone and together
T3  REPA by the tower of llava-mini: always, for the first 30 %, never
T4  text adapter of 0, 1 and 2 blocks, by prompts as a person writes them
T5  a rewriter before the text encoder, by such prompts
T6  prose, structured and mixed captions, at about as many tokens a caption
T7  the learning rate over the width, of AdamW and of Muon

All but T5 are comparisons by trainer.compare: the settings of each are OUT/<name>/compare.yaml, its arms
OUT/<name>/arms/*.yaml, its page OUT/<name>/comparison/page.html. Each has its table in OUT/<name>.md. After a kill, or a
signal to stop, the same command resumes. `--quick` runs them with tiny settings, to see that they work.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from benchmarks.recipes.experiments import COMPARISONS, Name
from benchmarks.report import print_report
from benchmarks.results_folder import claim
from foundry.command_line import run_command

_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class RecipeExperimentsConfig:
    """Settings of the experiments."""

    only: tuple[Name, ...] = get_args(Name)
    """Experiments to run."""
    out: str = "runs/recipe_experiments"
    """Folder for everything that is made; the same command again resumes in it."""
    scenes: int = 8000
    """Number of scenes with one object that all trainings see."""
    num_kinds: int = 16
    """Number of kinds of object in them."""
    num_seeds: int = 3
    """Number of seeds, 0, 1, …, with which each training is done."""
    checkpoint: str = "mini"
    """Checkpoint that T5 draws with."""
    quick: bool = False
    """Use tiny settings, to try every step."""

    def __post_init__(self) -> None:
        if wrong := [name for name in ("scenes", "num_kinds", "num_seeds") if getattr(self, name) < 1]:
            raise ValueError(f"{', '.join(wrong)} must be 1 or more")

    @property
    def folder(self) -> Path:
        """`out`, as a path."""
        return Path(self.out)


def main(config: RecipeExperimentsConfig) -> int:
    """Runs what is not done yet, prints tables and figures; returns 0, or 130 where it was told to stop. Raises UserError."""
    claim(config.folder, {"scenes": config.scenes, "num_kinds": config.num_kinds, "quick": config.quick})
    found: dict[str, float] = {"seeds": config.num_seeds}
    for name in config.only:
        title, question, text, figures, is_done = _run(name, config)
        markdown = f"### {name}. {title}\n\n{question}\n\n{text}"
        (config.folder / f"{name}.md").write_text(markdown, encoding="utf-8")
        print(f"\n{markdown}", flush=True)
        if not is_done:
            return _INTERRUPTED
        found |= {key if key.startswith(f"{name}_") else f"{name}_{key}": value for key, value in figures.items()}
    print_report("Recipe experiments", found)
    return 0


def _run(name: Name, config: RecipeExperimentsConfig) -> tuple[str, str, str, dict[str, float], bool]:
    """Title, question, tables, figures, and whether it is done."""
    from benchmarks.recipes.comparison import compare_arms, write_settings
    from benchmarks.recipes.rewriting import QUESTION, TITLE, compare_rewriting

    folder, quick = config.folder / name, config.quick
    if name == "T5":
        rewritten = compare_rewriting(folder, checkpoint=config.checkpoint, num_seeds=config.num_seeds, quick=quick)
        return TITLE, QUESTION, *rewritten, True
    experiment = COMPARISONS[name]
    features = _features(experiment.world, config)
    path = write_settings(experiment, folder, features=features, num_seeds=config.num_seeds, quick=quick)
    text, figures, is_done = compare_arms(path)
    return experiment.title, experiment.question, text, figures, is_done


def _features(world: str, config: RecipeExperimentsConfig) -> Path:
    """The features of a world, made where they are missing."""
    from benchmarks.recipes.structured_world import make_structured_features
    from benchmarks.staged_world import features_folder, make_world

    make_world(config, teacher=world == "teacher")
    return make_structured_features(config.folder / "world") if world == "structured" else features_folder(config)


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            RecipeExperimentsConfig,
            main,
            prog="python -m benchmarks.recipe_experiments",
            example="python -m benchmarks.recipe_experiments --only T1 T4",
        )
    )
