"""The steps of a rung, and what is due after them: metrics, validation, samples, checkpoints."""

from dataclasses import dataclass, replace

import torch

from model.dit import DiTConfig
from model.flops import training_flops
from trainer.config import LadderPosition, Rung, TrainConfig
from trainer.data.batches import Preparation
from trainer.data.loader import CaptionChoice, Loader
from trainer.data.order import DataOrder
from trainer.distributed import Workers
from trainer.features.plan import TRAIN
from trainer.features.store import FeatureBatch, FeatureStore
from trainer.monitoring.forecast import StepTimer, duration_warning
from trainer.monitoring.metrics import StepRecord, Watch
from trainer.monitoring.run_folder import RunFolder, StopSignal
from trainer.monitoring.validation import ValidationSet, measure
from trainer.training.checkpoints import Checkpoints, Position
from trainer.training.ema import ema_decay
from trainer.training.networks import network_around
from trainer.training.optimizer import learning_rate
from trainer.training.rung_parts import RungParts
from trainer.training.train_step import StepSettings, TrainState, train_step


@dataclass(eq=False)
class RungTraining:
    """The training of one rung: steps, and what is due after each of them. Made and run by all workers alike."""

    config: TrainConfig
    position: LadderPosition
    workers: Workers
    run_folder: RunFolder
    state: TrainState
    parts: RungParts
    watch: Watch
    checkpoints: Checkpoints
    timer: StepTimer

    @property
    def store(self) -> FeatureStore:
        """The features of the rung."""
        return self.parts.store

    @property
    def preparation(self) -> Preparation:
        """The preparation of its batches."""
        return self.parts.preparation

    @property
    def network(self) -> DiTConfig:
        """The network at the rung's resolution."""
        return self.preparation.network

    @property
    def precision(self) -> torch.dtype:
        """Number format of matrix products."""
        found = getattr(torch, self.config.precision)
        assert isinstance(found, torch.dtype)
        return found

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
        result = train_step(state, self.preparation.objective, self.preparation.micro_batches(batch, positions), settings)
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
        """Does what is due after a step. A checkpoint comes last: its thread may then write while training continues."""
        watch, every = self.config.watch, self.config.checkpoint.every_images
        self.checkpoints.check()
        if self.parts.validation and self._is_due(watch.validate_every_images):
            with self.watch.paused():
                self._validate(self.parts.validation)
        if self._is_due(watch.sample_every_images):
            with self.watch.paused():
                self._draw_samples()
        if ends or self._is_due(every):
            self.watch.flush()
            with self.watch.paused():
                self._save()

    def _warn_of_duration(self, step_s: float | None) -> None:
        """Warns of a stage that takes too long, once the time of a step is known."""
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
        """True where the last step reached a multiple of this many images."""
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
        weights = self.state.ema.full_weights(keep=self.parts.grids is not None)
        if self.parts.grids is not None:
            network = network_around(self.network, weights).to(self.workers.device).eval()
            with torch.autocast(self.workers.device.type, dtype=self.precision, enabled=self.precision != torch.float32):
                path = self.parts.grids.draw(network, self.state.images_seen)
            self.run_folder.say(f"{self.state.images_seen} images: samples in {path}")

    def _save(self) -> None:
        position = Position(
            images_seen=self.state.images_seen,
            ladder=self.config.ladder,
            seed=self.config.seed,
            features=self.store.info.fingerprint,
            content=self.store.content,
            aspect_ratio=self.config.data.aspect_ratio,
        )
        self.checkpoints.save(self.state, self.parts.pipeline, position)

    def _steps_before(self) -> int:
        return sum(rung.num_steps for rung in self.config.ladder[: self.position.index])

    def _flops_at(self, rung: Rung) -> float:
        """FLOPs of a square image of a rung, forward and backward, with the longest caption."""
        side = rung.resolution // self.store.info.downsampling // self.network.patch_size
        return training_flops(self.network, grid=(side, side), caption_tokens=self.network.max_caption_tokens)

    def _flops(self, batch: FeatureBatch) -> float:
        """FLOPs of an image of the batch, forward and backward."""
        patch = self.network.patch_size
        tokens = 0.0 if batch.captions is None else float(batch.captions.lengths.float().mean())
        return training_flops(self.network, grid=(batch.bucket[0] // patch, batch.bucket[1] // patch), caption_tokens=tokens)
