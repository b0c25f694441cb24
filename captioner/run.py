"""Command that captions images: `python -m captioner.run --images SRC [SRC …] --out RUN --model MODEL`, or as a Ray job.

You can interrupt it at any time; the same command resumes.
"""

from captioner.config import CaptionConfig
from foundry.command_line import run_command


def main(config: CaptionConfig) -> int:
    """Runs a captioning job to its end; returns 0, or 1 where more images were rejected than the budget allows."""
    from captioner.runs.captioning import caption_images

    return caption_images(config)


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            CaptionConfig,
            main,
            prog="python -m captioner.run",
            example="python -m captioner.run --images photos/ --out runs/photos --model llava-hf/llava-1.5-7b-hf",
        )
    )
