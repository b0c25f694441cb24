"""Features of a rung: opened and checked, and the command that makes them."""

from foundry.errors import UserError
from model.formats.checkpoint import PartConfig
from trainer.config import Rung, TrainConfig
from trainer.features.info import precompute_command
from trainer.features.store import FeatureStore


def open_features(config: TrainConfig, rung: Rung) -> FeatureStore:
    """The features of a rung. Raises UserError, with the command that makes them, where they are missing or unfit."""
    try:
        store = FeatureStore.open(config.features_folder(rung))
    except UserError as error:
        raise UserError(f"{error} (for this stage: {features_command(config, rung)})") from None
    info = store.info
    problems = {
        f"resolution {info.resolution}, expected {rung.resolution}": info.resolution != rung.resolution,
        "captions, expected classes": config.conditioning == "class" and not info.class_names,
        "classes, expected captions": config.conditioning == "text" and bool(info.class_names),
        "texts without features, which --online encodes": (
            config.conditioning == "text" and not info.class_names and info.caption_storage == "none" and not config.online
        ),
    }
    if found := [text for text, holds in problems.items() if holds]:
        command = features_command(config, rung, vae=info.vae, text_encoder=info.text_encoder)
        raise UserError(f"{config.features_folder(rung)} holds {'; '.join(found)}: {command}")
    return store


def features_command(
    config: TrainConfig, rung: Rung, *, vae: PartConfig | None = None, text_encoder: PartConfig | None = None
) -> str:
    """The command that makes them, with the parts that are known to be needed."""
    parts = {"vae": vae} | ({"text_encoder": text_encoder} if config.conditioning == "text" else {})
    return precompute_command(
        parts,
        dataset="DATASET",
        out=config.features,
        stage=config.stage,
        resolution=str(rung.resolution),
        more="--captions none" if config.online else "",
    )
