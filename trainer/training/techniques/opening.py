"""Techniques that the settings switch on, opened, in one list."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import lcm

import torch

from foundry.errors import UserError
from model.dit_config import DiTConfig
from model.encoders.frozen_parts import find_part
from model.encoders.teacher import Teacher
from model.encoders.vision_tower import VisionTowerConfig, load_vision_tower
from trainer.config.ladder import Rung
from trainer.config.techniques import STORED
from trainer.config.train import TrainConfig
from trainer.data.batches import Collator
from trainer.distributed import Workers
from trainer.features.info import FeaturesInfo
from trainer.features.store import FeatureStore
from trainer.features.teacher.store import FOLDER
from trainer.monitoring.sample_grids import open_vae
from trainer.planning.work import AddedWork, added_work
from trainer.training.techniques.dispersive import Dispersive
from trainer.training.techniques.layersync import LayerSync
from trainer.training.techniques.repa import Repa
from trainer.training.techniques.sra2 import Sra2
from trainer.training.techniques.technique import SharedTechnique, Technique, share

Opener = Callable[[TrainConfig, DiTConfig, FeatureStore, torch.device], Technique]


def _open_repa(config: TrainConfig, network: DiTConfig, store: FeatureStore, device: torch.device) -> Technique:
    assert config.repa.teacher is not None, "it is on"
    if store.teacher is not None:
        info = store.teacher.info
        return Repa(config.repa, network, teacher=None, teacher_width=info.width, fingerprint=info.fingerprint)
    tower = load_vision_tower(
        VisionTowerConfig(name=config.repa.teacher, revision=config.repa.revision, dtype=config.repa.dtype), device=str(device)
    )
    vae = open_vae(config, store.info, device=str(device))
    vae.model.disable_slicing()  # the teacher has its own limit of pixels
    teacher = Teacher(tower, vae)
    return Repa(config.repa, network, teacher=teacher, teacher_width=tower.width, fingerprint=tower.fingerprint())


OPENERS: dict[str, Opener] = {
    "repa": _open_repa,
    "sra2": lambda config, network, _store, _device: Sra2(config.sra2, network),
    "layersync": lambda config, network, _store, _device: LayerSync(config.layersync, network),
    "dispersive": lambda config, network, _store, _device: Dispersive(config.dispersive, network),
}
"""What opens each technique, by the name of its settings. Their order is that in which losses are added."""


def open_techniques(
    config: TrainConfig, network: DiTConfig, store: FeatureStore, workers: Workers
) -> tuple[SharedTechnique, ...]:
    """The techniques that are on, with new weights, on this worker's device.

    Raises UserError for blocks that the network lacks, and for a teacher or VAE that is unavailable or another one.
    """
    names = [name for name in OPENERS if getattr(config, name).is_on]
    found = []
    for index, name in enumerate(names):
        technique = OPENERS[name](config, network, store, workers.device)
        if too_high := [block for block in technique.blocks if block > network.depth]:
            raise UserError(f"{name} reads block {too_high[0]}, and the network has {network.depth}", setting=f"{name}.block")
        technique.initialise(torch.Generator().manual_seed(config.seed + index))
        found.append(share(technique, workers=workers, config=config.distributed))
    return tuple(found)


def open_work(config: TrainConfig, rung: Rung, network: DiTConfig, store: FeatureStore) -> AddedWork:
    """What techniques and optimiser add to the operations of a rung's steps. Raises UserError as `open_techniques`."""
    width = 0 if store.teacher is None else store.teacher.info.width
    return added_work(with_features_vae(config, store.info), rung, network, teacher_width=width)


def with_features_vae(config: TrainConfig, info: FeaturesInfo) -> TrainConfig:
    """The settings with the folder of the features' VAE, where a teacher needs it and they name none: the planner counts it."""
    if config.repa.teacher in (None, STORED) or config.vae is not None:
        return config
    return replace(config, vae=str(find_part(info.vae.name, "vae", revision=info.vae.revision).folder))


def group_of(techniques: Sequence[SharedTechnique]) -> int:
    """Samples that all losses together need in one micro-batch: it holds a multiple of them."""
    return lcm(*(shared.technique.group for shared in techniques))


def check_group(config: TrainConfig, num_workers: int) -> None:
    """Raises UserError where a worker's share of a batch cannot be cut into the groups of the dispersive loss."""
    group = config.dispersive.group
    for rung in config.ladder if config.dispersive.is_on else ():
        own = rung.batch_size // num_workers
        if own % group:
            fitting = [number for number in range(2, own + 1) if own % number == 0]
            advice = f"give one that does, as {min(fitting, key=lambda number: abs(number - group))}" if fitting else ""
            raise UserError(
                f"a group of {group} samples does not divide the {own} that a worker trains in a step: "
                f"{advice or 'give larger batches'}",
                setting="dispersive.group",
            )


def check_groups_fit(collator: Collator, store: FeatureStore) -> None:
    """Raises UserError where samples that a loss compares do not fit on a device at once."""
    side_px = store.info.downsampling * collator.network.patch_size
    tokens = max((height // side_px) * (width // side_px) for height, width in store.info.buckets)
    if collator.group > 1 and collator.group * tokens > collator.device_tokens:
        raise UserError(
            f"a group of {collator.group} samples of {tokens} patches is compared at once, which is more than the "
            f"{collator.device_tokens} patches of device_tokens: give {collator.group * tokens} or more, or a smaller group",
            setting="dispersive.group",
        )


def check_teacher(techniques: Sequence[SharedTechnique], network: DiTConfig, store: FeatureStore) -> None:
    """Raises UserError where the stored features of a rung's teacher are another's, or are not of the network's patches."""
    if store.teacher is None:
        return
    info, patch_px = store.teacher.info, store.info.downsampling * network.patch_size
    if info.patch_px != patch_px:
        raise UserError(
            f"the teacher saw {store.folder.url} in cells of {info.patch_px} px, and a patch of the network is {patch_px} px: "
            f"remove its folder {FOLDER}, and run trainer.precompute with teacher.patch_px {patch_px}",
            setting="repa.teacher",
        )
    expected = {shared.technique.record["teacher"] for shared in techniques if shared.technique.reads_teacher}
    if expected - {info.fingerprint}:
        raise UserError(
            f"the teacher of {store.folder.url} is {info.name} ({info.fingerprint}), at the resolution before it was another "
            f"({', '.join(sorted(expected))}): make both with one",
            setting="repa.teacher",
        )
