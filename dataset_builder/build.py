"""Command that builds a data set from captioning runs: a recipe chooses images and captions; all that is dropped is recorded.

python -m dataset_builder.build --captions RUN [RUN …] --out DATASET --where "num_nouns >= 12 AND clip_mean > 0.2"
python -m dataset_builder.build --captions RUN --out DATASET --config recipe.yaml --dry_run
"""

from dataset_builder.dataset.recipe import BuildConfig
from foundry.command_line import run_command


def main(config: BuildConfig) -> int:
    """Builds, prints the funnel and returns 0."""
    from dataset_builder.dataset.building import build_and_report

    return build_and_report(config)


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            BuildConfig,
            main,
            prog="python -m dataset_builder.build",
            example="python -m dataset_builder.build --captions RUN --out DATASET --where 'num_nouns >= 12'",
        )
    )
