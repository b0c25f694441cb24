"""The training loop: rung after rung of a stage's ladder, from where it stands to its end, or until it is told to stop.

Everything that is random or ordered follows from the seed and the images seen, so that a training that was killed goes on from
its last checkpoint bit for bit as if nothing had been (on CPUs; on as many workers).
"""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from foundry.command_line import counted
from foundry.errors import UserError
from foundry.hardware import AUTO, auto_dtype, keep_freed_memory
from model.diffusion import Objective, make_objective
from model.dit import DiTConfig
from model.flops import training_flops
from model.formats.checkpoint import PipelineConfig
from trainer.config import LadderPosition, Rung, TrainConfig, ladder_position
from trainer.data.batches import Preparation
from trainer.data.loader import CaptionChoice, Loader
from trainer.data.order import DataOrder
from trainer.data.passes import count_passes, passes_text
from trainer.distributed import Workers, join_workers
from trainer.features.info import FeaturesInfo
from trainer.features.plan import TRAIN, VALIDATION
from trainer.features.store import FeatureBatch, FeatureStore
from trainer.monitoring.gpus import gpu_of_device
from trainer.monitoring.metrics import StepRecord, Watch
from trainer.monitoring.outlook import StepTimer, duration_warning, stage_passes_warning
from trainer.monitoring.run_folder import RunFolder, StopSignal, recorded_precision
from trainer.monitoring.sample_grids import SampleGrids, choose_subjects, open_text_encoder, open_vae
from trainer.monitoring.validation import ValidationSet, measure
from trainer.training.checkpoints import Checkpoints, Position
from trainer.training.networks import attention_kernel, network_around, sizes_text, with_positions
from trainer.training.optimizer import ema_decay, learning_rate
from trainer.training.start import check_workers, find_start, open_state, run_path
from trainer.training.train_step import StepSettings, TrainState, train_step

_WAIT_FOR_RUN_S = 60.0


def train_here(config: TrainConfig, *, device: str) -> bool:
    """Trains one stage as the only worker, or as one that Ray or torchrun started; returns whether it is done."""
    try:
        with join_workers(device, timeout_s=config.distributed.timeout_s) as workers:
            return train(config, workers)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of memory ({str(error).splitlines()[0]}): give --gradient_checkpointing, or fewer --device_tokens than "
            f"{config.device_tokens}; the batch stays as it is"
        ) from error


def train(config: TrainConfig, workers: Workers) -> bool:
    """Trains a stage; returns whether it is done, or was told to stop. All workers call it. Raises UserError."""
    workers.from_first(find_start(config))  # what is missing is said before a folder is made
    run = RunFolder(run_path(config), workers)
    with run.held(wait_s=_WAIT_FOR_RUN_S):
        return _train(config, workers, run)


def _train(config: TrainConfig, workers: Workers, run: RunFolder) -> bool:
    start = workers.from_first(find_start(config))
    images_seen = int(start.checkpoint.name) if start.resumes and start.checkpoint else 0
    position = ladder_position(config.ladder, images_seen)
    if position is None:
        run.say(f"{config.stage}: all {images_seen} images are seen, the newest checkpoint is {start.checkpoint}")
        return True
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process needs none
    check_workers(config, workers.num)
    keep_freed_memory()
    config = with_precision(config, run.path if start.resumes else None, workers)
    store = open_features(config, position)
    state = open_state(config, start, rung=position.rung, info=store.info, workers=workers)
    run.start(config, workers, origin=str(start), images_seen=images_seen)
    run.say(
        f"{config.stage}: {start}; {sizes_text(state.network.config)}; {counted(workers.num, 'worker')}, "
        f"{workers.device.type}, {config.precision}"
    )
    if start.resumes and config.precision == "bfloat16" and auto_dtype(str(workers.device)) == "float32":
        run.say("it began in bfloat16, which this hardware only emulates, slowly: --precision float32 is quicker here")
    if images_seen > position.images_before and start.checkpoint and Position.read(start.checkpoint).content != store.content:
        run.say(
            f"the features in {store.folder.url} have changed since the checkpoint: from here on their order is another one"
        )
    if workers.is_first:
        run.warn_once(stage_passes_warning(config, position.rung, num_samples=store.num_samples(TRAIN)))
    timer = StepTimer(wait_for_device=workers.wait_for_device)
    watch = Watch(run, config.watch, workers, peak_flops=_peak_flops(config, workers.device))
    checkpoints = Checkpoints(run.path, config.checkpoint, workers)
    checkpoints.remove_partial()
    try:
        with attention_kernel(config.attention), StopSignal(run, workers) as stop:
            while position is not None and RungTraining(
                config, position, workers, run, state, store, watch, checkpoints, timer
            ).run(stop):
                position = ladder_position(config.ladder, state.images_seen)
                store = open_features(config, position) if position is not None else store
        checkpoints.wait()
    finally:
        checkpoints.close()
    ending = "done" if position is None else "stopped, and goes on with the same command"
    run.say(f"{config.stage}: {ending}; {state.images_seen} images seen, checkpoints in {checkpoints.folder}")
    return position is None


def with_precision(config: TrainConfig, resumed: Path | None, workers: Workers) -> TrainConfig:
    """The settings without `auto` as the precision: what the `resumed` run began with, else what all devices have."""
    if config.precision != AUTO:
        return config
    begun_in = workers.from_first(recorded_precision(resumed) if resumed is not None else None)
    found = workers.gather(auto_dtype(str(workers.device)))
    return replace(config, precision=begun_in or ("float32" if "float32" in found else "bfloat16"))


def open_features(config: TrainConfig, position: LadderPosition) -> FeatureStore:
    """The features of a rung. Raises UserError, with the command that makes them, where they are missing or unfit."""
    rung = position.rung
    try:
        store = FeatureStore.open(config.features_folder(rung))
    except UserError as error:
        raise UserError(f"{error} (for this stage: {config.precompute_command(rung)})") from None
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
        command = config.precompute_command(rung, vae=info.vae, text_encoder=info.text_encoder)
        raise UserError(f"{config.features_folder(rung)} holds {'; '.join(found)}: {command}")
    return store


def pipeline_config(config: TrainConfig, info: FeaturesInfo, resolution: int) -> PipelineConfig:
    """What the checkpoints say of how to generate."""
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


@dataclass(eq=False)
class RungTraining:
    """One rung: its data, and what is done at which step."""

    config: TrainConfig
    position: LadderPosition
    workers: Workers
    run_folder: RunFolder
    state: TrainState
    store: FeatureStore
    watch: Watch
    checkpoints: Checkpoints
    timer: StepTimer

    def __post_init__(self) -> None:
        config, rung, info = self.config, self.position.rung, self.store.info
        self.state.network.rebase(with_positions(self.state.network.config, rung, info))
        self.network: DiTConfig = self.state.network.config
        self.precision = getattr(torch, config.precision)
        check_buckets(self.network, info, where=self.store.folder.url)
        check_caption_weights(config.data.caption_weights, self.store)
        self.objective = open_objective(config)
        encodes = config.online and info.text_encoder is not None and info.caption_storage == "none"
        encoder = open_text_encoder(config, info, device=str(self.workers.device)) if encodes else None
        self.preparation = Preparation(
            network=self.network,
            objective=self.objective,
            scale=self.store.scale,
            device=self.workers.device,
            seed=config.seed,
            class_dropout=config.data.caption_dropout if self.network.null_class else 0.0,
            device_tokens=config.device_tokens,
            text_encoder=encoder,
        )
        self.pipeline = pipeline_config(config, info, rung.resolution)
        self.validation = self._validation_set()
        self.grids = self._sample_grids() if config.watch.sample_every_images and self.workers.is_first else None
        self._say_what_is_read()

    def run(self, stop: StopSignal) -> bool:
        """Trains to the rung's end; returns whether it got there."""
        rung, state = self.position.rung, self.state
        order = DataOrder(self.store.samples(TRAIN), seed=self.config.seed + self.position.index, batch_size=rung.batch_size)
        data = self.config.data
        loader = Loader(
            self.store,
            order,
            start_images_seen=state.images_seen - self.position.images_before,
            rank=self.workers.rank,
            world_size=self.workers.num,
            num_workers=data.loader_threads,
            prefetch=data.prefetch,
            captions=CaptionChoice(dropout=data.caption_dropout, weights=data.caption_weights or None),
            pin=self.workers.device.type == "cuda",
        )
        end = self.position.images_before + rung.images_seen
        self.timer.begin_rung()
        with loader:
            while state.images_seen < end:
                with self.timer.step():
                    step = self._step(next(loader), wait_s=loader.wait_s)
                self._warn_of_duration(self.timer.step_s())
                stops = stop.stops(look=step % self.config.watch.every_steps == 0)
                self._after_step(ends=stops or state.images_seen == end)
                if stops:
                    return state.images_seen == end
        return True

    def _step(self, batch: FeatureBatch, *, wait_s: float) -> int:
        """One optimiser step; returns its number in the stage, from 1."""
        config, rung, state = self.config, self.position.rung, self.state
        in_rung = state.images_seen - self.position.images_before
        settings = StepSettings(
            lr=learning_rate(config.optim, step=in_rung // rung.batch_size, num_steps=rung.num_steps),
            ema_decay=ema_decay(config.ema, batch_size=rung.batch_size, images_seen=in_rung + rung.batch_size),
            gradient_clip=config.optim.gradient_clip,
            precision=self.precision,
            num_samples=rung.batch_size // self.workers.num,
        )
        positions = [state.images_seen + index for index in self.workers.slice(rung.batch_size)]
        batch = replace(batch, captions=self.preparation.captions(batch))  # encoded here where they are not stored
        result = train_step(state, self.objective, self.preparation.micro_batches(batch, positions), settings)
        state.images_seen += rung.batch_size
        step = self._steps_before() + in_rung // rung.batch_size + 1
        record = StepRecord(
            step=step,
            images_seen=state.images_seen,
            resolution=rung.resolution,
            images_left=self.position.images_before + rung.images_seen - state.images_seen,
            lr=settings.lr,
            keys=batch.keys,
            flops=self._flops(batch) * rung.batch_size,
            batch_size=rung.batch_size,
            wait_s=wait_s,
        )
        self.watch.add(record, losses=result.losses, gradient_norm=result.gradient_norm)
        return step

    def _after_step(self, *, ends: bool) -> None:
        """What is due after a step. A checkpoint comes last: its thread may then write while training goes on."""
        watch, every = self.config.watch, self.config.checkpoint.every_images
        self.checkpoints.check()
        if self.validation and self._is_due(watch.validate_every_images):
            with self.watch.paused():
                self._validate(self.validation)
        if self._is_due(watch.sample_every_images):
            with self.watch.paused():
                self._draw_samples()
        if ends or self._is_due(every):
            self.watch.flush()
            with self.watch.paused():
                self._save()

    def _warn_of_duration(self, step_s: float | None) -> None:
        """Once the speed is known."""
        if step_s is not None:
            warning = duration_warning(
                self.config,
                self.position,
                images_seen=self.state.images_seen,
                step_s=step_s,
                work=self._flops_at,
                num_workers=self.workers.num,
                device=self.workers.device.type,
            )
            self.run_folder.warn_once(warning)

    def _is_due(self, every_images: int) -> bool:
        """Whether the last step reached a multiple of so many images."""
        now = self.state.images_seen
        return every_images > 0 and now // every_images > (now - self.position.rung.batch_size) // every_images

    def _validate(self, samples: ValidationSet) -> None:
        bands = self.config.watch.timestep_bands
        with self.state.ema.applied():
            found = measure(samples, self.state.model, self.preparation, self.workers, bands=bands, precision=self.precision)
        row = {"kind": "validation", "images_seen": self.state.images_seen, "resolution": self.position.rung.resolution}
        self.run_folder.add_metrics(row | {"loss": found.loss, "bands": list(found.bands)})
        self.run_folder.say(f"{self.state.images_seen} images: {found}")

    def _draw_samples(self) -> None:
        """All workers give their part of the average's weights, the first one draws."""
        weights = self.state.ema.full_weights(keep=self.grids is not None)
        if self.grids is not None:
            network = network_around(self.network, weights).to(self.workers.device).eval()
            with torch.autocast(self.workers.device.type, dtype=self.precision, enabled=self.precision != torch.float32):
                path = self.grids.draw(network, self.state.images_seen)
            self.run_folder.say(f"{self.state.images_seen} images: samples in {path}")

    def _save(self) -> None:
        position = Position(
            images_seen=self.state.images_seen,
            ladder=self.config.ladder,
            seed=self.config.seed,
            features=self.store.info.fingerprint,
            content=self.store.content,
        )
        self.checkpoints.save(self.state, self.pipeline, position)

    def _validation_set(self) -> ValidationSet | None:
        watch = self.config.watch
        if not watch.validate_every_images and not watch.sample_every_images:
            return None
        if VALIDATION not in self.store.splits:
            self.run_folder.say(f"{self.store.folder.url} has no validation split: no validation loss is measured")
            return None
        weights = self.config.data.caption_weights
        return ValidationSet.of(
            self.store, self.preparation, num_images=watch.validation_images, weights=weights, workers=self.workers
        )

    def _sample_grids(self) -> SampleGrids | None:
        subjects = choose_subjects(self.config, self.validation, self.store, self.preparation.text_encoder)
        if subjects is None:
            self.run_folder.say("no samples are drawn: give --watch.prompts, or features with a validation split")
            return None
        vae = open_vae(self.config, self.store.info, device=str(self.workers.device))
        return SampleGrids(self.run_folder.path, pipeline=self.pipeline, subjects=subjects, vae=vae, config=self.config.watch)

    def _say_what_is_read(self) -> None:
        store, rung = self.store, self.position.rung
        sizes = store.bucket_sizes(TRAIN)
        num = sum(sizes.values())
        missing = f"; not made yet: {counted(store.missing_units, 'unit')}" if store.missing_units else ""
        self.run_folder.say(
            f"{rung.resolution} px: {counted(rung.images_seen, 'image')} in {counted(rung.num_steps, 'step')} of "
            f"{rung.batch_size}, from {counted(num, 'sample')} in {counted(len(sizes), 'bucket')} of "
            f"{store.folder.url}{missing}: each is seen {passes_text(count_passes([(rung.images_seen, num)]))} times"
        )

    def _steps_before(self) -> int:
        return sum(rung.num_steps for rung in self.config.ladder[: self.position.index])

    def _flops_at(self, rung: Rung) -> float:
        """Of a square image of a rung, forward and backward, with the longest caption."""
        side = rung.resolution // self.store.info.downsampling // self.network.patch_size
        return training_flops(self.network, grid=(side, side), caption_tokens=self.network.max_caption_tokens)

    def _flops(self, batch: FeatureBatch) -> float:
        """Of an image of the batch, forward and backward."""
        patch = self.network.patch_size
        tokens = 0.0 if batch.captions is None else float(batch.captions.lengths.float().mean())
        return training_flops(self.network, grid=(batch.bucket[0] // patch, batch.bucket[1] // patch), caption_tokens=tokens)


def _peak_flops(config: TrainConfig, device: torch.device) -> float | None:
    """Operations a second that MFU is a share of; None where they are not known."""
    if config.watch.peak_tflops is not None:
        return config.watch.peak_tflops * 1e12
    gpu = gpu_of_device(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return gpu.peak_flops if gpu is not None else None
