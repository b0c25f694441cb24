"""Evaluations of checkpoints by the options of the command: scores, and a row for each image."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_builder.api.answer import Answer
from foundry.api.functions import takes_options
from trainer.evaluation.config import EvaluateConfig

if TYPE_CHECKING:
    from trainer.evaluation.summary import Summary


class Evaluation:
    """A finished evaluation. A notebook shows its summary."""

    def __init__(self, folder: Path, summary: "Summary") -> None:
        self.folder = folder
        """Folder with the images, the verdicts and `page.html`."""
        self.summary = summary

    def scores(self) -> Answer:
        """A row for each category and metric by one evaluator: `category`, `judge`, `metric`, `num_images`, `value`,
        `standard_error`, and the scores of held-out prompts and of true images, where there are any."""
        import pyarrow as pa

        rows = [{**asdict(score), "published": score.published and score.published.value} for score in self.summary.scores]
        return Answer(pa.Table.from_pylist(rows))

    def results(self) -> Answer:
        """A row for each image and metric, with the prompt and what the evaluator saw."""
        import pyarrow.parquet as pq

        from trainer.evaluation.summary import RESULTS

        return Answer(pq.read_table(self.folder / RESULTS))

    def _repr_markdown_(self) -> str:
        """What a notebook shows."""
        from trainer.evaluation.summary import markdown

        return markdown(self.summary)

    def __repr__(self) -> str:
        return self._repr_markdown_()


@takes_options(EvaluateConfig, command="trainer.evaluate")
def evaluate_checkpoint(options: EvaluateConfig) -> Evaluation:
    """Draws the prompts of a benchmark, scores the images with evaluators, and returns the scores. Needs the extra `evaluate`.

    The same call resumes and keeps finished images and verdicts. Raises UserError for a checkpoint, a benchmark or evaluators
    that are unavailable, and for a folder that holds another evaluation.

    Example:

        from trainer import evaluate_checkpoint
        evaluation = evaluate_checkpoint(checkpoint="mini", benchmark="examples.openmoji.benchmark", out="evaluation")
        evaluation.scores().df()
    """
    from trainer.evaluation.run import evaluate

    return Evaluation(Path(options.out), evaluate(options))
