"""Command that trains a rewriter: `python -m trainer.fit_rewriter --captions RUN --text_encoder NAME --out DIR`.

A rewriter turns a short prompt into a caption like those that the network was trained on: it keeps what the prompt states and
fills in what it leaves open. It learns from short and dense captions of the same images. The same command again resumes.
"""

from foundry.command_line import run_command
from foundry.commands import as_typed
from foundry.reporting.lines import say
from trainer.rewriting.config import FitRewriterConfig


def main(config: FitRewriterConfig) -> int:
    """Trains what is still to be trained, says where the rewriter is, and returns 0."""
    from trainer.rewriting.training import fit_rewriter

    say(f"{fit_rewriter(config)}: use it by {as_typed('model.generate and trainer.evaluate')} with --rewrite.model")
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            FitRewriterConfig,
            main,
            prog="python -m trainer.fit_rewriter",
            example="python -m trainer.fit_rewriter --captions runs/ladder --text_encoder mini --out runs/rewriter",
        )
    )
