"""Parts of a rung's training: its objective, batches, validation set and sample grids, opened and checked."""

from dataclasses import dataclass, replace

import torch

from foundry.command_line import counted
from foundry.errors import UserError
from model.diffusion import Objective, make_objective
from model.dit import DiT, DiTConfig
from model.formats.checkpoint import PipelineConfig
from trainer.config import Rung, TrainConfig
from trainer.data.batches import Preparation
from trainer.data.passes import count_passes, passes_text
from trainer.data.skip_list import read_skip_list
from trainer.distributed import Workers
from trainer.features.info import FeaturesInfo
from trainer.features.plan import TRAIN, VALIDATION
from trainer.features.store import FeatureStore
from trainer.monitoring.gpus import gpu_of_device
from trainer.monitoring.run_folder import RunFolder
from trainer.monitoring.sample_grids import SampleGrids, choose_subjects, open_text_encoder, open_vae
from trainer.monitoring.validation import ValidationSet
from trainer.training.networks import with_positions


@dataclass(frozen=True, eq=False, kw_only=True)
class RungParts:
    """All that a rung needs besides the state of the training."""

    store: FeatureStore
    preparation: Preparation
    pipeline: PipelineConfig
    """The settings of generation that the checkpoints hold."""
    validation: ValidationSet | None
    """None: no validation loss is measured."""
    grids: SampleGrids | None
    """On the first worker only; None: no samples are drawn."""


def open_rung(
    config: TrainConfig, rung: Rung, *, workers: Workers, run: RunFolder, network: DiT, store: FeatureStore
) -> RungParts:
    """Sets the network to the rung's resolution, opens the parts, and logs what the rung reads.

    Raises UserError for settings that do not fit the features, and for encoders that are unavailable.
    """
    network.rebase(with_positions(network.config, rung, store.info))
    check_buckets(network.config, store.info, where=store.folder.url)
    check_caption_weights(config.data.caption_weights, store)
    preparation = _open_preparation(config, network.config, store, workers)
    pipeline = pipeline_config(config, store.info, rung.resolution)
    validation = _open_validation(config, preparation, store, workers=workers, run=run)
    grids = None
    if config.watch.sample_every_images and workers.is_first:
        grids = _open_grids(config, preparation, store, validation=validation, pipeline=pipeline, run=run)
    _say_what_is_read(config, rung, store, run)
    return RungParts(store=store, preparation=preparation, pipeline=pipeline, validation=validation, grids=grids)


def pipeline_config(config: TrainConfig, info: FeaturesInfo, resolution: int) -> PipelineConfig:
    """The settings of generation that the checkpoints hold."""
    terms = [part for part in (config.licence, info.licence) if part]
    common = PipelineConfig(
        objective=config.objective.name,
        objective_settings=config.objective.settings,
        resolution=resolution,
        vae=info.vae,
        licence="; ".join(terms),
    )
    if info.text_encoder is None:
        return common
    return replace(common, text_encoder=info.text_encoder, caption_cleaning=info.caption_cleaning)


def open_objective(config: TrainConfig) -> Objective:
    """Raises UserError for settings that the objective has not."""
    try:
        return make_objective(config.objective.name, config.objective.settings)
    except ValueError as error:
        raise UserError(f"--objective: {error}") from error


def check_buckets(network: DiTConfig, info: FeaturesInfo, *, where: str) -> None:
    """Raises UserError where latents of some bucket cannot be cut into the network's patches."""
    factor = network.kv_compression.factor if network.kv_compression.layers else 1
    step = info.downsampling * network.patch_size * factor
    if wrong := [f"{height} x {width}" for height, width in info.buckets if height % step or width % step]:
        raise UserError(f"{where} has buckets whose sides are no multiples of {step} px, which this network needs: {wrong[0]}")


def check_caption_weights(weights: dict[str, float], store: FeatureStore) -> None:
    """Raises UserError where they name no caption variant that is there: all samples would be trained with the null caption."""
    if not weights or store.info.class_names:
        return
    firsts = [units[0] for units in store.samples(TRAIN).values()]  # of each bucket: some may hold very few images
    names = {name for unit, rows in firsts for row in range(rows) for name in store.caption_names(unit, row)}
    if not any(weights.get(name) for name in names):
        raise UserError(
            f"--data.caption_weights gives no weight to any caption in {store.folder.url}: they are {', '.join(sorted(names))}"
        )


def peak_flops(config: TrainConfig, device: torch.device) -> float | None:
    """Operations a second that MFU is a share of; None where they are not known."""
    if config.watch.peak_tflops is not None:
        return config.watch.peak_tflops * 1e12
    gpu = gpu_of_device(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return gpu.peak_flops if gpu is not None else None


def _open_preparation(config: TrainConfig, network: DiTConfig, store: FeatureStore, workers: Workers) -> Preparation:
    objective, info = open_objective(config), store.info
    encodes = config.online and info.text_encoder is not None and info.caption_storage == "none"
    return Preparation(
        network=network,
        objective=objective,
        scale=store.scale,
        device=workers.device,
        seed=config.seed,
        class_dropout=config.data.caption_dropout if network.null_class else 0.0,
        device_tokens=config.device_tokens,
        text_encoder=open_text_encoder(config, info, device=str(workers.device)) if encodes else None,
        original_aspect_ratio=config.data.aspect_ratio == "image",
    )


def _open_validation(
    config: TrainConfig, preparation: Preparation, store: FeatureStore, *, workers: Workers, run: RunFolder
) -> ValidationSet | None:
    watch = config.watch
    if not watch.validate_every_images and not watch.sample_every_images:
        return None
    if VALIDATION not in store.splits:
        run.say(f"{store.folder.url} has no validation split: no validation loss is measured")
        return None
    weights = config.data.caption_weights
    return ValidationSet.of(store, preparation, num_images=watch.validation_images, weights=weights, workers=workers)


def _open_grids(
    config: TrainConfig,
    preparation: Preparation,
    store: FeatureStore,
    *,
    validation: ValidationSet | None,
    pipeline: PipelineConfig,
    run: RunFolder,
) -> SampleGrids | None:
    subjects = choose_subjects(config, validation, store, preparation.text_encoder)
    if subjects is None:
        run.say("no samples are drawn: give --watch.prompts, or features with a validation split")
        return None
    vae = open_vae(config, store.info, device=str(preparation.device))
    return SampleGrids(run.path, pipeline=pipeline, subjects=subjects, vae=vae, config=config.watch)


def _say_what_is_read(config: TrainConfig, rung: Rung, store: FeatureStore, run: RunFolder) -> None:
    sizes = store.bucket_sizes(TRAIN)
    num = sum(sizes.values())
    if config.data.skip:
        keys = len(read_skip_list(config.data.skip))
        run.say(f"--data.skip {config.data.skip} leaves out {counted(store.num_skipped, 'sample')}, by {counted(keys, 'key')}")
    missing = f"; not made yet: {counted(store.missing_units, 'unit')}" if store.missing_units else ""
    run.say(
        f"{rung.resolution} px: {counted(rung.images_seen, 'image')} in {counted(rung.num_steps, 'step')} of "
        f"{rung.batch_size}, from {counted(num, 'sample')} in {counted(len(sizes), 'bucket')} of "
        f"{store.folder.url}{missing}: each is seen {passes_text(count_passes([(rung.images_seen, num)]))} times"
    )
