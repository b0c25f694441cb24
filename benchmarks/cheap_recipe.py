"""Compute of the cheap recipe to the paper's score: `python -m benchmarks.cheap_recipe`, hours on two cores.

In the small world with 16 kinds, one object and 64 px. The paper's three stages (pixel, alignment, aesthetic) are trained
once for each seed. The cheap recipe's alignment has checkpoints at equal distances; behind each one its stage aesthetic is
trained, so that every point of its curve is a whole training. Compute is in operations, as trainer.plan counts them:
networks, losses of techniques, teachers and Muon's steps; both sides share features and captions.

compute_ratio    share of the paper's compute at which the cheap recipe reaches the paper's score at its end, by the worst of
                 all measures; null if it does not reach one
compute_ratio_*  the same by one measure, on the means over the seeds; an upper bound where its first point is enough
loss_*           denoising loss of the weights' average on validation scenes, at the same noise and noise levels for both
                 objectives: see benchmarks/recipes/denoising.py
object_*, all_*  share of held-out prompts whose object, or everything, is drawn; mean of both evaluators. *_paper is the
                 paper's at its end, *_cheap that of the cheap recipe at its end
flops_*          operations of either recipe to its end

Trainings and evaluations are folders of --out; after a kill the same command resumes. The table is kept in OUT/cheap_recipe.md.
"""

from benchmarks.recipes.config import CheapRecipeConfig
from benchmarks.report import print_report, recorded_dtypes
from benchmarks.results_folder import claim
from foundry.command_line import run_command
from trainer.config.train import CONFIG_FILE


def main(config: CheapRecipeConfig) -> int:
    """Trains and measures what is not there yet, prints table and figures; returns 0. Raises UserError."""
    from benchmarks.recipes.measures import measure
    from benchmarks.recipes.outcome import outcome
    from benchmarks.recipes.trainings import train_cheap, train_paper
    from benchmarks.staged_world import make_world

    claim(config.folder, config.identity())
    make_world(config, style=True)
    paper, cheap = [], []
    for seed in range(config.num_seeds):
        paper.append(measure(train_paper(seed, config), config, arm="paper", seed=seed))
        points = zip(config.point_images, train_cheap(seed, config), strict=True)
        cheap.append([measure(trained, config, arm=f"cheap_{images}", seed=seed) for images, trained in points])
        markdown, figures = outcome(paper, cheap)
        (config.folder / "cheap_recipe.md").write_text(markdown, encoding="utf-8")  # after each seed: hours lie between
    print(f"\n{markdown}", flush=True)
    runs = (path.parent for path in config.folder.glob(f"trainings/**/{CONFIG_FILE}"))
    print_report("Cheap recipe", figures, dtype=recorded_dtypes(runs))
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            CheapRecipeConfig,
            main,
            prog="python -m benchmarks.cheap_recipe",
            example="python -m benchmarks.cheap_recipe --num_seeds 1",
        )
    )
