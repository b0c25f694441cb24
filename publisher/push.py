"""Command that publishes a data set, a checkpoint or a LoRA on the Hugging Face hub: `python -m publisher.push PATH USER/NAME`.

A data set goes as it is, with its card; a checkpoint as a folder that diffusers opens, a LoRA as one of peft, with samples and
training facts. A new repository is private. The same command again finishes a push that was stopped. The token is HF_TOKEN.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from foundry.command_line import run_command
from foundry.commands import as_typed
from foundry.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """All settings of `python -m publisher.push`."""

    path: str
    """Folder of a data set, of a checkpoint, or of a training, whose newest checkpoint is taken; `mini` is the bundled one."""
    repository: str
    """Repository on the hub, USER/NAME or ORGANISATION/NAME; it is created if it does not exist."""
    licence: str = ""
    """Licence to publish under: an identifier of the hub (cc-by-4.0) or a text; default: the one of the
    repository's card or the recorded one."""
    public: bool = False
    """Show the repository to everybody, once all is there."""
    replace: bool = False
    """Replace other files that the repository holds, as those of an earlier data set or checkpoint."""
    copy_parts: bool = True
    """Push text encoder, tokenizer and VAE with a network; without them, users pass them to from_pretrained."""
    evaluation: tuple[str, ...] = ()
    """Folders of trainer.evaluate whose figures the card of a model shows."""
    message: str = "Push by T2I Foundry"
    """Message of the commits."""


def main(config: PushConfig) -> int:
    """Pushes, says the address and returns 0. Raises UserError."""
    from dataset_builder.sql.dataset_files import is_dataset
    from foundry.reporting.lines import say
    from foundry.storage.hub import Repository
    from foundry.storage.hub_transfers import push_folder
    from publisher.staged_dataset import stage_dataset

    of_dataset = is_dataset(config.path)
    repository = Repository(name=config.repository, kind="dataset" if of_dataset else "model")
    with tempfile.TemporaryDirectory(prefix="t2i-push-") as scratch:
        staging = Path(scratch) / "files"
        if of_dataset:
            if config.evaluation:
                raise UserError(f"{config.path} is a data set, and evaluations are of models", setting="evaluation")
            record = stage_dataset(config.path, staging, repository=repository, licence=config.licence, public=config.public)
        else:
            from publisher.staged_model import stage_model

            _check_model(config.path)
            record = stage_model(
                config.path,
                staging,
                repository=repository,
                licence=config.licence,
                copy_parts=config.copy_parts,
                evaluations=config.evaluation,
                public=config.public,
            )
        address = push_folder(
            staging, repository, record=record, public=config.public, replace=config.replace, message=config.message
        )
    seen_by = "public" if config.public else "private"
    say(f"{address}: {seen_by}; fetch it with {as_typed('python -m publisher.pull')} {config.repository} FOLDER")
    return 0


def _check_model(path: str) -> None:
    """Raises UserError where nothing is that could be pushed; the rest is checked where the checkpoint is read."""
    from model.formats.checkpoint import MINI, MINI_FEW_STEPS

    root, known = Path(path).expanduser(), "the folder of a data set, of a checkpoint, or of a training"
    if path in (MINI, MINI_FEW_STEPS) or root.is_file():
        return
    if not root.exists():
        raise UserError(f"{path} does not exist: give {known}", setting="path")
    if not any((root / name).exists() for name in ("pipeline.json", "model_index.json", "checkpoints")):
        raise UserError(f"{path} has no dataset.json, pipeline.json or checkpoints/: give {known}", setting="path")


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            PushConfig,
            main,
            prog="python -m publisher.push",
            example="python -m publisher.push datasets/photos USER/photos --licence cc-by-4.0",
            positional=("path", "repository"),
        )
    )
