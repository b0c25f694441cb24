"""Command that scores images and their captions: `python -m dataset_builder.score RUN|DATASET`, or as a Ray job.

Scores are CLIP between an image and each sentence of its captions, LAION's aesthetic predictor, sharpness, and the perceptual
hash and embeddings that find duplicates. The same command resumes; if the run has grown, it scores what is new.
"""

from dataset_builder.scores.config import ScoreConfig
from foundry.command_line import run_command


def main(config: ScoreConfig) -> int:
    """Scores what is not scored yet; returns 0, or 1 where more images failed than the budget allows."""
    from dataset_builder.scores.scoring import score_images

    return 0 if score_images(config) else 1


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            ScoreConfig,
            main,
            prog="python -m dataset_builder.score",
            example="python -m dataset_builder.score runs/photos --clip ViT-L-14-quickgelu:openai",
            positional=("source",),
        )
    )
