"""Scores of images and builds of data sets, by the options of the commands."""

from dataclasses import fields
from typing import TYPE_CHECKING

from dataset_builder.api.answer import Answer
from dataset_builder.api.stored import Dataset, Run, open_dataset, open_source
from dataset_builder.dataset.recipe import BuildConfig, SelectionConfig
from dataset_builder.scores.config import ScoreConfig
from foundry.api.functions import takes_options
from foundry.errors import UserError
from foundry.reporting.lines import say
from foundry.storage.folder import Folder, store_errors

if TYPE_CHECKING:
    from dataset_builder.dataset.building import Built


@takes_options(BuildConfig, command="dataset_builder.build")
def build_dataset(options: BuildConfig) -> Dataset:
    """Builds a data set from captioning runs by a recipe, unless it is there already, and opens it.

    What was left out, and why, is in its views `funnel`, `dropped` and `dropped_captions`. Raises UserError for wrong SQL, an
    empty selection, and a folder that holds something else.

    Example:

        dataset = build_dataset(captions=["runs/photos"], out="data/photos", where="num_nouns >= 12")
        dataset.funnel().df()
    """
    if options.dry_run:
        raise UserError("a dry run builds no data set: call preview_dataset(captions=…), which returns the funnel")
    _build(options)
    return open_dataset(options.out)


@takes_options(SelectionConfig, command="dataset_builder.build")
def preview_dataset(options: SelectionConfig) -> Answer:
    """Takes the steps of a recipe and writes nothing; returns the funnel: `step`, `reason`, `kept`, `dropped`.

    Raises UserError as build_dataset does, but for an empty selection.

    Example:

        preview_dataset(captions=["runs/photos"], where="num_nouns >= 12").df()
    """
    chosen = {field.name: getattr(options, field.name) for field in fields(options)}
    return Answer(_build(BuildConfig(**chosen, out="", dry_run=True)).funnel)


@takes_options(ScoreConfig, command="dataset_builder.score")
def score_images(options: ScoreConfig) -> Run | Dataset:
    """Scores the images and captions of a run or data set on Ray, and opens it: views `scores`, `caption_scores`, `embeddings`.

    Needs the extra `caption`. The same call resumes. Raises UserError for a source or a model that is unavailable, and where
    more images fail than `max_rejected` allows.

    Example:

        run = score_images(source="runs/photos", clip="ViT-L-14-quickgelu:openai")
        run.sql("SELECT key, clip_mean FROM scores ORDER BY clip_mean LIMIT 10").df()
    """
    from dataset_builder.scores import scoring

    if not scoring.score_images(options):
        raise UserError(
            f"more images of {options.source} fail than max_rejected allows: see the line above", setting="max_rejected"
        )
    return open_source(options.source)


def _build(config: BuildConfig) -> "Built":
    """Builds, and says what a reader of the result must know. Raises UserError."""
    from dataset_builder.dataset import building

    with store_errors(Folder(config.out)):
        built = building.build_dataset(config)
    for note in built.notes:
        say(note)
    return built
