"""Parts of a rung's training: its objective, batches, validation set and sample grids, opened, checked and used."""

from dataclasses import dataclass, replace

import torch

from foundry.errors import UserError
from foundry.wording import counted
from model.diffusion import Objective, make_objective
from model.dit import DiTConfig
from model.flops import AdaptationSizes, training_flops
from model.formats.checkpoint import PipelineConfig
from trainer.config.ladder import LadderPosition, Rung
from trainer.config.routing import ADVICE
from trainer.config.train import TrainConfig
from trainer.data.batches import Collator
from trainer.data.loader import CaptionChoice, Loader
from trainer.data.order import DataOrder
from trainer.data.passes import TrainingWarning, passes_text
from trainer.data.skip_list import read_skip_list
from trainer.distributed import Workers
from trainer.features.info import FeaturesInfo
from trainer.features.plan import TRAIN, VALIDATION
from trainer.features.store import FeatureBatch, FeatureStore
from trainer.monitoring.forecast import duration_warning
from trainer.monitoring.gpus import gpu_of_device
from trainer.monitoring.metrics import StepRecord
from trainer.monitoring.run_folder import RunFolder
from trainer.monitoring.sample_grids import SampleGrids, choose_subjects, open_text_encoder, open_vae
from trainer.monitoring.validation import ValidationSet, measure
from trainer.planning.techniques import planned_adaptation
from trainer.planning.work import AddedWork
from trainer.training.checkpoints import Checkpoints, Position
from trainer.training.ema import ema_decay
from trainer.training.networks import network_around, with_positions
from trainer.training.optimizer import learning_rate, optimizer_record
from trainer.training.techniques.few_steps import distilling
from trainer.training.techniques.lora import averaged_network
from trainer.training.techniques.opening import check_groups_fit, check_teacher, group_of, open_work
from trainer.training.techniques.technique import setting_records
from trainer.training.train_step import StepSettings, TrainState


@dataclass(frozen=True, eq=False, kw_only=True)
class RungParts:
    """All that a rung needs besides the state of the training."""

    config: TrainConfig
    position: LadderPosition
    workers: Workers
    run_folder: RunFolder
    store: FeatureStore
    collator: Collator
    pipeline: PipelineConfig
    """The settings of generation that the checkpoints hold."""
    validation: ValidationSet | None
    """None: no validation loss is measured."""
    grids: SampleGrids | None
    """On the first worker only; None: no samples are drawn."""
    added_work: AddedWork
    """Operations of techniques and optimiser, for MFU; none are counted where the device's peak is not known."""

    @property
    def network(self) -> DiTConfig:
        """The network at the rung's resolution."""
        return self.collator.network

    @property
    def adapted(self) -> AdaptationSizes | None:
        """The sizes of the LoRA or control; none where all weights are trained."""
        return planned_adaptation(self.config, self.network)

    @property
    def precision(self) -> torch.dtype:
        """Number format of matrix products."""
        found = getattr(torch, self.config.precision)
        assert isinstance(found, torch.dtype)
        return found


def open_rung(
    config: TrainConfig, position: LadderPosition, *, workers: Workers, run: RunFolder, state: TrainState, store: FeatureStore
) -> RungParts:
    """Sets the network to the rung's resolution, opens the parts, and logs what the rung reads.

    Raises UserError for settings that do not fit the features, and for encoders that are unavailable.
    """
    rung, network = position.rung, state.network
    network.rebase(with_positions(network.config, rung, store.info))
    check_buckets(network.config, store.info, where=store.folder.url)
    check_caption_weights(config.data.caption_weights, store)
    collator = _open_collator(config, network.config, store, workers, position=position, group=group_of(state.techniques))
    collator = distilling(collator, config, state.distillation, store)
    check_groups_fit(collator, store)
    check_teacher(state.techniques, network.config, store)
    pipeline = pipeline_config(config, store.info, rung.resolution)
    validation = _open_validation(config, collator, store, workers=workers, run=run)
    grids = None
    if config.watch.is_sampled and workers.is_first:
        grids = _open_grids(config, collator, store, validation=validation, pipeline=pipeline, run=run)
    _say_what_is_read(config, rung, store, run)
    _say_routing(collator, config, position, run)
    return RungParts(
        config=config,
        position=position,
        workers=workers,
        run_folder=run,
        store=store,
        collator=collator,
        pipeline=pipeline,
        validation=validation,
        grids=grids,
        added_work=open_work(config, rung, network.config, store) if peak_flops(config, workers.device) else AddedWork(),
    )


def open_loader(parts: RungParts, state: TrainState) -> Loader:
    """The rung's batches, from the one that follows; with what a teacher sees as long as a technique reads it."""
    rung, data, workers = parts.position.rung, parts.config.data, parts.workers
    seed = parts.config.seed + parts.position.index
    techniques = [shared.technique for shared in state.techniques]
    return Loader(
        parts.store,
        DataOrder(parts.store.samples(TRAIN), seed=seed, batch_size=rung.batch_size, weights=parts.store.weights),
        start_images_seen=state.images_seen - parts.position.images_before,
        rank=workers.rank,
        world_size=workers.num,
        num_workers=data.loader_threads,
        prefetch=data.prefetch,
        captions=CaptionChoice(dropout=data.caption_dropout, weights=data.caption_weights or None),
        pin=workers.device.type == "cuda",
        teacher_images=max((one.num_images(parts.position) for one in techniques if one.reads_teacher), default=0),
    )


def step_settings(parts: RungParts, state: TrainState) -> StepSettings:
    """The settings of the step that follows."""
    config, rung = parts.config, parts.position.rung
    in_rung = state.images_seen - parts.position.images_before
    return StepSettings(
        lr=learning_rate(config.optim, step=in_rung // rung.batch_size, num_steps=rung.num_steps),
        ema_decay=ema_decay(config.ema, batch_size=rung.batch_size, images_seen=in_rung + rung.batch_size),
        gradient_clip=config.optim.gradient_clip,
        precision=parts.precision,
        num_samples=rung.batch_size // parts.workers.num,
        techniques=tuple(shared for shared in state.techniques if in_rung < shared.technique.num_images(parts.position)),
    )


def step_record(
    parts: RungParts, batch: FeatureBatch, settings: StepSettings, *, images_seen: int, wait_s: float
) -> StepRecord:
    """The record of the step with these settings after which the stage has seen `images_seen` images."""
    acting = [*(shared.technique.name for shared in settings.techniques), *parts.config.few_steps.record()]
    added = parts.added_work.flops(acting, num_images=parts.position.rung.batch_size)
    position, rung = parts.position, parts.position.rung
    in_rung = images_seen - position.images_before
    steps_before = sum(before.num_steps for before in parts.config.ladder[: position.index])
    return StepRecord(
        step=steps_before + in_rung // rung.batch_size,
        images_seen=images_seen,
        resolution=rung.resolution,
        images_left=rung.images_seen - in_rung,
        lr=settings.lr,
        keys=batch.keys,
        flops=_batch_flops(parts, batch, images_seen=images_seen - rung.batch_size) * rung.batch_size + added,
        batch_size=rung.batch_size,
        wait_s=wait_s,
        read_bytes=batch.read_bytes,
    )


def warn_of_duration(parts: RungParts, *, images_seen: int, step_s: float) -> None:
    """Warns of a stage that takes too long at this time of a step."""

    routing, ladder = parts.config.routing, parts.config.ladder

    def flops(rung: Rung) -> float:
        """FLOPs of a square image of a rung, forward and backward, with the longest caption; the first steps' where routed."""
        side = rung.resolution // parts.store.info.downsampling // parts.network.patch_size
        is_routed = routing.routed_images(ladder, ladder.index(rung), num_tokens=side**2) > 0
        routed = routing.blocks if is_routed else None
        tokens = parts.network.max_caption_tokens
        return training_flops(parts.network, grid=(side, side), caption_tokens=tokens, routed=routed, adapted=parts.adapted)

    warning = duration_warning(
        parts.config,
        parts.position,
        images_seen=images_seen,
        step_s=step_s,
        work=flops,
        num_workers=parts.workers.num,
        device=parts.workers.device.type,
    )
    parts.run_folder.warn_once(warning)


def validate(parts: RungParts, samples: ValidationSet, state: TrainState) -> None:
    """Measures the validation loss of the average's weights, and reports it. All workers call it."""
    bands, run = parts.config.watch.timestep_bands, parts.run_folder
    with state.ema.applied():
        found = measure(samples, state.model, parts.collator, parts.workers, bands=bands, precision=parts.precision)
    row = {"kind": "validation", "images_seen": state.images_seen, "resolution": parts.position.rung.resolution}
    run.add_metrics(row | {"loss": found.loss, "bands": list(found.bands)}, f"{state.images_seen} images: {found}")


def draw_samples(parts: RungParts, state: TrainState) -> None:
    """Draws the sample grids. All workers give their part of the average's weights, the first one draws."""
    keep = parts.grids is not None
    weights = averaged_network(state.ema, state.lora, keep=keep) if state.lora else state.ema.full_weights(keep=keep)
    if parts.grids is not None:
        device, precision = parts.workers.device, parts.precision
        network = network_around(parts.network, weights).to(device).eval()
        with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
            path = parts.grids.draw(network, state.images_seen)
        parts.run_folder.say(f"{state.images_seen} images: samples in {path}")


def write_checkpoint(parts: RungParts, state: TrainState, checkpoints: Checkpoints) -> None:
    """Saves the state with the position from which a training resumes. All workers call it."""
    position = Position(
        images_seen=state.images_seen,
        ladder=parts.config.ladder,
        seed=parts.config.seed,
        features=parts.store.info.fingerprint,
        content=parts.store.content,
        aspect_ratio=parts.config.data.aspect_ratio,
        optimizer=optimizer_record(parts.config, num_shards=parts.workers.num_shards(parts.config.distributed)),
        techniques=setting_records(parts.config, state.techniques),
    )
    checkpoints.save(state, parts.pipeline, position)


def pipeline_config(config: TrainConfig, info: FeaturesInfo, resolution: int) -> PipelineConfig:
    """The settings of generation that the checkpoints hold."""
    terms = [part for part in (config.licence, info.licence) if part]
    common = PipelineConfig(
        objective=config.objective.name,
        objective_settings=config.objective.settings_at(resolution),
        resolution=resolution,
        vae=info.vae,
        latent_scaling=info.latent_scaling,
        latent_shift=info.latent_shift,
        licence="; ".join(terms),
        routed=config.routing.blocks if config.routing.kind == "tread" else None,
        few_steps=config.few_steps.result,
    )
    if info.text_encoder is None:
        return common
    return replace(
        common,
        text_encoder=info.text_encoder,
        caption_cleaning=info.caption_cleaning,
        caption_template=info.caption_template,
        caption_hidden_state=info.caption_hidden_state,
    )


def open_objective(config: TrainConfig, resolution: int) -> Objective:
    """The objective at a resolution in pixels. Raises UserError for settings that the objective has not."""
    try:
        return make_objective(config.objective.name, config.objective.settings_at(resolution))
    except ValueError as error:
        raise UserError(str(error), setting="objective.settings") from error


def check_buckets(network: DiTConfig, info: FeaturesInfo, *, where: str) -> None:
    """Raises UserError where latents of some bucket cannot be cut into the network's patches."""
    factor = network.kv_compression.factor if network.kv_compression.layers else 1
    step = info.downsampling * network.patch_size * factor
    if wrong := [f"{height} x {width}" for height, width in info.buckets if height % step or width % step]:
        raise UserError(
            f"{where} has buckets whose sides are no multiples of {step} px, which this network needs: {wrong[0]}: train with "
            "smaller patches, or make features with the patch_size of the network in another folder",
            setting="network.patch_size",
        )


def check_caption_weights(weights: dict[str, float], store: FeatureStore) -> None:
    """Raises UserError where they name no caption variant that is there: all samples would be trained with the null caption."""
    if not weights or store.info.class_names:
        return
    firsts = [units[0] for units in store.samples(TRAIN).values()]  # of each bucket: some may hold very few images
    names = {name for unit, rows in firsts for row in range(rows) for name in store.caption_names(unit, row)}
    if not any(weights.get(name) for name in names):
        raise UserError(
            f"no caption in {store.folder.url} has a weight: they are {', '.join(sorted(names))}",
            setting="data.caption_weights",
        )


def peak_flops(config: TrainConfig, device: torch.device) -> float | None:
    """Operations a second that MFU is a share of; None where they are not known."""
    if config.watch.peak_tflops is not None:
        return config.watch.peak_tflops * 1e12
    gpu = gpu_of_device(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return gpu.peak_flops if gpu is not None else None


def _batch_flops(parts: RungParts, batch: FeatureBatch, *, images_seen: int) -> float:
    """FLOPs of the network on an image of the batch that follows `images_seen` images, forward and backward."""
    collator, network = parts.collator, parts.network
    tokens = 0.0 if batch.captions is None else float(batch.captions.lengths.float().mean())
    grid = (batch.bucket[0] // network.patch_size, batch.bucket[1] // network.patch_size)
    routed = collator.routed if images_seen < collator.routed_until else None
    return training_flops(network, grid=grid, caption_tokens=tokens, routed=routed, adapted=parts.adapted)


def _open_collator(
    config: TrainConfig, network: DiTConfig, store: FeatureStore, workers: Workers, *, position: LadderPosition, group: int
) -> Collator:
    objective, info = open_objective(config, store.info.resolution), store.info
    routed = config.routing.routed_images(config.ladder, position.index, num_tokens=network.base_grid**2)
    encodes = config.online and info.text_encoder is not None and info.caption_storage == "none"
    return Collator(
        network=network,
        objective=objective,
        scale=store.scale,
        device=workers.device,
        seed=config.seed,
        class_dropout=config.data.caption_dropout if network.null_class else 0.0,
        device_tokens=config.device_tokens,
        text_encoder=open_text_encoder(config, info, device=str(workers.device)) if encodes else None,
        original_aspect_ratio=config.data.aspect_ratio == "image",
        group=group,
        control_dropout=config.control.dropout,
        routed=config.routing.blocks,
        routed_until=position.images_before + routed,
    )


def _open_validation(
    config: TrainConfig, collator: Collator, store: FeatureStore, *, workers: Workers, run: RunFolder
) -> ValidationSet | None:
    watch = config.watch
    if not watch.is_validated and not watch.is_sampled:
        return None
    if VALIDATION not in store.splits:
        run.say(f"{store.folder.url} has no validation split: no validation loss is measured")
        return None
    weights = config.data.caption_weights
    return ValidationSet.of(store, collator, num_images=watch.validation_images, weights=weights, workers=workers)


def _open_grids(
    config: TrainConfig,
    collator: Collator,
    store: FeatureStore,
    *,
    validation: ValidationSet | None,
    pipeline: PipelineConfig,
    run: RunFolder,
) -> SampleGrids | None:
    subjects = choose_subjects(config, validation, store, collator.text_encoder)
    if subjects is None:
        run.say("no samples are drawn: give watch.prompts, or features with a validation split")
        return None
    vae = open_vae(config, store.info, device=str(collator.device))
    return SampleGrids(run.path, pipeline=pipeline, subjects=subjects, vae=vae, config=config.watch)


def _say_what_is_read(config: TrainConfig, rung: Rung, store: FeatureStore, run: RunFolder) -> None:
    sizes = store.bucket_sizes(TRAIN)
    num = sum(sizes.values())
    if config.data.skip:
        keys = len(read_skip_list(config.data.skip))
        run.say(f"{config.data.skip} leaves out {counted(store.num_skipped, 'sample')}, by {counted(keys, 'key')}")
    if config.data.weights:
        run.say(f"{config.data.weights} weighs samples: a pass has {store.images_per_pass(TRAIN):,.0f} images")
    shift = config.objective.shifts.get(rung.resolution)
    shifted = "" if shift is None else f"; times are shifted by {shift:g}"
    missing = f"; not made yet: {counted(store.missing_units, 'unit')}" if store.missing_units else ""
    seen = "each is seen" if store.weights is None else "one of weight 1 is seen"
    run.say(
        f"{rung.resolution} px: {counted(rung.images_seen, 'image')} in {counted(rung.num_steps, 'step')} of "
        f"{rung.batch_size}, from {counted(num, 'sample')} in {counted(len(sizes), 'bucket')} of "
        f"{store.folder.url}{missing}: {seen} {passes_text(rung.images_seen / store.images_per_pass(TRAIN))} times{shifted}"
    )


def _say_routing(collator: Collator, config: TrainConfig, position: LadderPosition, run: RunFolder) -> None:
    """Says how long this resolution is trained with routing, and warns where that does not pay."""
    routing, rung, num_tokens = config.routing, position.rung, collator.network.base_grid**2
    if routing.blocks is None:
        return
    if reason := routing.off_reason(config.ladder, position.index, num_tokens=num_tokens):
        run.say(f"{rung.resolution} px: no {routing.kind} at {reason}")
        return
    steps = routing.routed_images(config.ladder, position.index, num_tokens=num_tokens) // rung.batch_size
    numbers = f"{routing.blocks.before + 1} to {collator.network.depth - routing.blocks.after}"
    run.say(
        f"{rung.resolution} px: {routing.kind} of {routing.share:.0%} of the tokens in blocks {numbers} for {steps} of "
        f"{counted(rung.num_steps, 'step')}"
    )
    if fact := routing.does_not_pay(num_tokens):
        run.warn_once(TrainingWarning(fact, ADVICE))
