"""Command that prepares the training of a subject or style from a handful of images (DreamBooth).

    python -m trainer.dreambooth --images my_dog --trigger_word "sks dog" --class_prompt "a photo of a dog" \\
        --checkpoint pixart-512 --out dog

Copies the images with their captions, lets the checkpoint draw images of what it should not forget, weighs both, and prints the
commands that follow: data set, features, and the training of a LoRA. docs/adaptation.md explains them.
"""

from foundry.command_line import run_command
from foundry.reporting.lines import say
from trainer.subjects.config import SubjectConfig


def main(config: SubjectConfig) -> int:
    """Prepares what is not there yet and returns 0."""
    from trainer.subjects.preparation import next_commands, prepare

    prepared = prepare(config)
    drawn = f"{prepared.num_prior} that {config.checkpoint} drew"
    say(f"{config.out}: {prepared.num_images} images of {config.trigger_word}, {drawn}")
    say("next:")
    for command in next_commands(config):
        say(f"  {command}")
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            SubjectConfig,
            main,
            prog="python -m trainer.dreambooth",
            example='python -m trainer.dreambooth --images my_dog --trigger_word "sks dog" --class_prompt "a photo of a dog" '
            "--checkpoint pixart-512 --out dog",
        )
    )
