"""Compute of a training in operations, as the planner counts it, up to a number of images of each stage.

Counted are the network forward and backward, losses of techniques and their projectors, a teacher with the VAE that decodes
for it, also where what it sees was stored before, and Muon's steps. Not counted, since both sides need them alike: captions,
latents and features of captions, validation and samples.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from model.formats.checkpoint import read_transformer_config
from trainer.config.techniques import STORED
from trainer.config.train import CONFIG_FILE, TrainConfig
from trainer.features.plan import TRAIN
from trainer.features.store import FeatureStore, SampleRequest
from trainer.features.teacher.store import read_teacher_info
from trainer.monitoring.run_folder import newest_checkpoint
from trainer.planning.config import PlanConfig, RungPlan
from trainer.planning.estimate import plan, stage_configs
from trainer.planning.techniques import technique_costs

_COUNTED_CAPTIONS = 256


def training_flops(runs: Mapping[Path, int]) -> float:
    """Operations of a training that saw so many images in the run of each stage."""
    return sum(_stage_flops(run, images) for run, images in runs.items())


@cache
def _stage_flops(run: Path, images: int) -> float:
    settings = PlanConfig(fit_config=str(run / CONFIG_FILE))
    (train,) = stage_configs(settings)
    (rung,) = train.ladder
    store = FeatureStore.open(train.features_folder(rung))
    has_captions = not store.info.class_names
    config = replace(
        settings,
        num_gpus=1,
        caption_tokens=mean_caption_tokens(store, train.data.caption_weights) if has_captions else 1.0,
        caption_width=store.info.caption_width if has_captions else 1,
        latent_channels=store.info.latent_channels,
        downsampling=store.info.downsampling,
    )
    (planned,) = plan(config)
    return flops_until(planned, images) + _stored_teacher_flops(train, store, run)


def _stored_teacher_flops(train: TrainConfig, store: FeatureStore, run: Path) -> float:
    """Operations of the teacher, and of the VAE that decodes for it, over all samples whose features are stored."""
    if train.repa.teacher != STORED:
        return 0.0
    found, checkpoint = read_teacher_info(store.folder.url), newest_checkpoint(run)
    assert found is not None and checkpoint is not None, "it was trained with what the teacher saw"
    network, (rung,) = read_transformer_config(checkpoint), train.ladder
    online = replace(train, vae=train.vae or store.info.vae.name, repa=replace(train.repa, teacher=found.name))
    stored_cost, online_cost = (
        next(cost for cost in technique_costs(one, rung, network, stored_width=found.width) if cost.name == "repa")
        for one in (train, online)
    )
    return store.num_samples(TRAIN) * (online_cost.flops_per_image - stored_cost.flops_per_image)


def flops_until(rung: RungPlan, images: int) -> float:
    """Operations of a rung's first images: techniques act from the first one on, until they stop."""
    techniques = sum(min(images, cost.share * rung.images_seen) * cost.flops_per_image for cost in rung.techniques)
    return images * rung.flops_per_image + techniques + images / rung.batch_size * rung.optimizer_flops


def mean_caption_tokens(store: FeatureStore, weights: Mapping[str, float]) -> float:
    """Mean tokens of the captions that training reads, over the first samples; variants count by their weights.

    The null caption, of a tenth of the samples, counts as any other.
    """
    firsts = [(unit.unit, row) for units in store.samples(TRAIN).values() for unit in units for row in range(unit.rows)]
    tokens = images = 0.0
    for unit, row in firsts[:_COUNTED_CAPTIONS]:
        names = store.caption_names(unit, row)
        shares = [weights.get(name, 0.0) if weights else 1.0 for name in names]
        if not sum(shares):
            continue
        read = store.read([SampleRequest(unit=unit, row=row, caption=index) for index in range(len(names))]).captions
        assert read is not None, "features of captions are stored"
        tokens += sum(share * float(length) for share, length in zip(shares, read.lengths, strict=True)) / sum(shares)
        images += 1
    return tokens / images
