"""The validation loss of a checkpoint by bands of timesteps, as training measures it: the same samples, noise and timesteps."""

import torch

from foundry.errors import UserError
from model.diffusion import make_objective
from model.formats.checkpoint import check_fingerprint, load_checkpoint
from model.generation.pipeline_parts import RuntimeConfig
from trainer.config import WatchConfig
from trainer.data.batches import Preparation
from trainer.distributed import Workers
from trainer.features.store import FeatureStore
from trainer.monitoring.validation import SPLIT, ValidationLoss, ValidationSet, measure

_DEVICE_TOKENS = 8192


def validation_loss(checkpoint: str, features: str, *, num_images: int, runtime: RuntimeConfig) -> ValidationLoss:
    """Over at most `num_images` of the features' validation split. Raises UserError for features that do not fit."""
    network, config = load_checkpoint(checkpoint, dtype=torch.float32)
    store = FeatureStore.open(features)
    if store.info.text_encoder is None or store.info.caption_storage == "none":
        raise UserError(f"--features {features}: holds no features of captions; make them by {store.info.command}")
    if SPLIT not in store.splits:
        raise UserError(f"--features {features}: has no validation split; make it by {store.info.command}")
    for kind, trained, found in (
        ("vae", config.vae, store.info.vae),
        ("text_encoder", config.text_encoder, store.info.text_encoder),
    ):
        check_fingerprint(kind, trained, name=f"{features} ({found.name})", found=found.fingerprint)
    workers = Workers(device=torch.device(runtime.resolved().device))
    network = network.to(workers.device)
    preparation = Preparation(
        network=network.config,
        objective=make_objective(config.objective, config.objective_settings),
        scale=store.scale,
        device=workers.device,
        seed=0,
        class_dropout=0.0,
        device_tokens=_DEVICE_TOKENS,
    )
    samples = ValidationSet.of(store, preparation, num_images=num_images, weights={}, workers=workers)
    return measure(samples, network, preparation, workers, bands=WatchConfig.timestep_bands, precision=torch.float32)
