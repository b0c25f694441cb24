"""Validation loss by band of timesteps, of a training or a checkpoint: the same samples, noise and timesteps each time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from foundry.errors import UserError
from model.diffusion import make_objective, validation_noise
from model.formats.adapters import open_adapters
from model.formats.checkpoint import check_fingerprint, load_checkpoint
from model.generation.pipeline_parts import RuntimeConfig
from model.lora.settings import LoraChoice
from trainer.config.running import WatchConfig
from trainer.data.batches import Collator
from trainer.data.order import OrderedBatch, in_order
from trainer.distributed import Workers
from trainer.features.info import check_reading
from trainer.features.plan import VALIDATION
from trainer.features.store import FeatureStore, SampleRequest

TIMESTEPS = 1000
_DEVICE_TOKENS = 8192


@dataclass(frozen=True)
class ValidationLoss:
    """Means over samples."""

    loss: float
    bands: tuple[float | None, ...]
    """Mean loss by equal band of timesteps 0..1000, from low to high; None for a band without samples."""

    def __str__(self) -> str:
        width = TIMESTEPS // len(self.bands)
        parts = [
            f"{index * width}-{(index + 1) * width}: {band:.4f}" for index, band in enumerate(self.bands) if band is not None
        ]
        return f"validation loss {self.loss:.4f}  ({', '.join(parts)})"


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """The samples that are measured, and the choice of their captions."""

    store: FeatureStore
    batches: tuple[tuple[int, OrderedBatch], ...]
    """Batches of one bucket for all workers, each with the index of its first sample in the set."""
    weights: dict[str, float]
    """Weights of the caption variants, by name; the heaviest one that a sample has is read."""

    @classmethod
    def of(
        cls, store: FeatureStore, collator: Collator, *, num_images: int, weights: dict[str, float], workers: Workers
    ) -> "ValidationSet":
        """Chooses at most `num_images` samples, of all buckets in proportion. Raises UserError for a store without the
        split."""
        units = store.samples(VALIDATION)
        total = sum(rows for samples in units.values() for _, rows in samples)
        batches, index = [], 0
        for bucket, samples in units.items():
            left = math.ceil(sum(rows for _, rows in samples) * min(1.0, num_images / total))
            for batch in in_order({bucket: samples}, batch_size=collator.micro_batch_size(bucket) * workers.num):
                kept = OrderedBatch(batch.bucket, batch.samples[:left])
                left -= len(kept.samples)
                if kept.samples:
                    batches.append((index, kept))
                    index += len(kept.samples)
        return cls(store=store, batches=tuple(batches), weights=weights)

    def request(self, unit: int, row: int) -> SampleRequest:
        """A sample with its caption."""
        return SampleRequest(unit=unit, row=row, caption=None if self.store.info.class_names else self._heaviest)

    def _heaviest(self, names: Sequence[str]) -> int | None:
        return max(range(len(names)), key=lambda index: self.weights.get(names[index], 0.0), default=None)


@torch.no_grad()
def measure(
    samples: ValidationSet, model: nn.Module, collator: Collator, workers: Workers, *, bands: int, precision: torch.dtype
) -> ValidationLoss:
    """The loss over all samples. All workers must call it; each measures its share, and one that has none repeats a sample."""
    sums = torch.zeros(bands, 2, dtype=torch.float64)
    for first, batch in samples.batches:
        own = math.ceil(len(batch.samples) / workers.num)
        share = range(workers.rank * own, min((workers.rank + 1) * own, len(batch.samples)))
        chosen = share or range(1)  # where weights are sharded, all workers must run the network equally often
        part = collator.whole(samples.store.read([samples.request(*batch.samples[index]) for index in chosen]))
        indices = [first + index for index in chosen]
        noise, timesteps = validation_noise(collator.objective, part.latents, indices)
        losses = collator.objective.loss(part.predict(model, precision), part.latents, noise, timesteps).total
        found = torch.stack([losses.double(), torch.ones_like(losses, dtype=torch.float64)], dim=1).cpu()
        band = (timesteps.cpu() * bands / TIMESTEPS).long().clamp(0, bands - 1)
        if share:
            sums.index_add_(0, band, found)
    sums = workers.sum(sums)
    means = [total / number if number else None for total, number in sums.tolist()]
    return ValidationLoss(loss=float(sums[:, 0].sum() / sums[:, 1].sum()), bands=tuple(means))


@dataclass(frozen=True, eq=False, kw_only=True)
class CheckpointValidation:
    """A checkpoint, and the samples that its loss is measured on."""

    network: nn.Module
    samples: ValidationSet
    collator: Collator
    workers: Workers


def validation_loss(
    checkpoint: str, features: str, *, num_images: int, runtime: RuntimeConfig, lora: Sequence[LoraChoice] = ()
) -> ValidationLoss:
    """Over at most `num_images` of the features' validation split, of a checkpoint with the adapters `lora` added.

    Raises UserError for features that do not fit.
    """
    opened = open_validation(checkpoint, features, num_images=num_images, runtime=runtime, lora=lora)
    bands = WatchConfig.timestep_bands
    return measure(opened.samples, opened.network, opened.collator, opened.workers, bands=bands, precision=torch.float32)


def open_validation(
    checkpoint: str,
    features: str,
    *,
    num_images: int,
    runtime: RuntimeConfig | None = None,
    weights: dict[str, float] | None = None,
    lora: Sequence[LoraChoice] = (),
) -> CheckpointValidation:
    """Opens at most `num_images` of the features' validation split; `weights` choose their captions, by name; `lora` is added
    to the network.

    Raises UserError for features that do not fit the checkpoint.
    """
    network, config = load_checkpoint(checkpoint, dtype=torch.float32, adapters=open_adapters(lora, checkpoint))
    store = FeatureStore.open(features)
    if store.info.text_encoder is None or store.info.caption_storage == "none":
        raise UserError(f"{features} holds no features of captions: make them with {store.info.command}", setting="features")
    if VALIDATION not in store.splits:
        raise UserError(f"{features} has no validation split: make it with {store.info.command}", setting="features")
    for kind, trained, found in (
        ("vae", config.vae, store.info.vae),
        ("text_encoder", config.text_encoder, store.info.text_encoder),
    ):
        check_fingerprint(
            kind,
            trained,
            name=f"{features} ({found.name})",
            found=found.fingerprint,
            advice="give features that were made with that one",
        )
    check_reading(config, store.info, where=features, trained=checkpoint)
    workers = Workers(device=torch.device((runtime or RuntimeConfig()).resolved().device))
    network = network.to(workers.device)
    collator = Collator(
        network=network.config,
        objective=make_objective(config.objective, config.objective_settings),
        scale=config.latent_scale or store.info.own_scale,
        device=workers.device,
        seed=0,
        class_dropout=0.0,
        device_tokens=_DEVICE_TOKENS,
    )
    samples = ValidationSet.of(store, collator, num_images=num_images, weights=weights or {}, workers=workers)
    return CheckpointValidation(network=network, samples=samples, collator=collator, workers=workers)
