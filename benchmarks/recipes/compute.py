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
from trainer.planning.config import PlanConfig
from trainer.planning.estimate import stage_configs
from trainer.planning.work import TrainingWork, training_work

_COUNTED_CAPTIONS = 256


def training_flops(runs: Mapping[Path, int]) -> float:
    """Operations of a training, given the number of images that each of its runs, one for each stage, saw."""
    return sum(_stage_flops(run, images) for run, images in runs.items())


@cache
def _stage_flops(run: Path, images: int) -> float:
    (train,) = stage_configs(PlanConfig(fit_config=str(run / CONFIG_FILE)))
    (rung,), checkpoint = train.ladder, newest_checkpoint(run)
    assert checkpoint is not None, "it was trained"
    network, store = read_transformer_config(checkpoint), FeatureStore.open(train.features_folder(rung))
    tokens = 0.0 if store.info.class_names else mean_caption_tokens(store, train.data.caption_weights)
    teacher = read_teacher_info(store.folder.url)

    def work(config: TrainConfig) -> TrainingWork:
        width = teacher.width if teacher is not None else 0
        return training_work(config, rung, network, caption_tokens=tokens, teacher_width=width)

    found = work(train).flops(images)
    if train.repa.teacher != STORED or teacher is None:
        return found
    seen = replace(train, vae=train.vae or store.info.vae.name, repa=replace(train.repa, teacher=teacher.name, stop_share=1.0))
    of_all = replace(train, repa=replace(train.repa, stop_share=1.0))
    once = (work(seen).flops() - work(of_all).flops()) / rung.images_seen  # of teacher and decoder, for an image
    return found + store.num_samples(TRAIN) * once


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
