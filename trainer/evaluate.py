"""Command that scores a checkpoint: `python -m trainer.evaluate --checkpoint CHECKPOINT --benchmark NAME --out DIR`.

Draws the prompts of a benchmark, has evaluators (judges) score the images, and summarises the scores. The same command again
resumes it and keeps finished images and verdicts. In DIR:

evaluation.json   the identity of the evaluation: the command refuses another one in this folder
prompts.jsonl     the prompts
images/           a PNG for each prompt and seed, with its settings inside
verdicts/         a line for each image and judge: values, and what the judge saw
results.parquet   a row for each image and metric
summary.json, summary.md, page.html
"""

from foundry.command_line import run_command
from foundry.reporting.lines import say
from trainer.evaluation.config import EvaluateConfig


def main(config: EvaluateConfig) -> int:
    """Evaluates what is not evaluated yet, and prints the summary; returns 0."""
    from trainer.evaluation.run import evaluate
    from trainer.evaluation.summary import markdown

    say(markdown(evaluate(config)))
    say(f"{config.out}: results.parquet, summary.json, summary.md and page.html")
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            EvaluateConfig,
            main,
            prog="python -m trainer.evaluate",
            example="python -m trainer.evaluate --checkpoint mini --benchmark examples.openmoji.benchmark --out evaluation",
        )
    )
