"""Folders by absolute paths, for Ray's workers, whose working folder is another one."""

from dataclasses import replace
from pathlib import Path

from foundry.storage.folder import is_local_path
from trainer.config import TrainConfig


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The same settings, seen from anywhere: what names a folder here, also of a start or an encoder, is made absolute."""
    return replace(
        config,
        features=absolute(config.features),
        run_dir=absolute(config.run_dir),
        init_from=absolute_if_there(config.init_from),
        text_encoder=absolute_if_there(config.text_encoder),
        vae=absolute_if_there(config.vae),
    )


def absolute(path: str) -> str:
    """URLs stay as they are."""
    return str(Path(path.removeprefix("file://")).absolute()) if is_local_path(path) else path


def absolute_if_there(name: str | None) -> str | None:
    """Hub ids and other names stay as they are."""
    return absolute(name) if name and Path(name).exists() else name
