"""The steps of a rung, and what is due after them: metrics, validation, samples, checkpoints."""

from dataclasses import dataclass, replace

from foundry.reporting.progress import Bar
from trainer.features.store import FeatureBatch
from trainer.monitoring.cadence import Due, Schedule
from trainer.monitoring.forecast import StepTimer
from trainer.monitoring.metrics import MetricsReporter
from trainer.monitoring.run_folder import StopSignal
from trainer.training.checkpoints import Checkpoints
from trainer.training.rung_parts import (
    RungParts,
    draw_samples,
    open_loader,
    step_record,
    step_settings,
    validate,
    warn_of_duration,
    write_checkpoint,
)
from trainer.training.techniques.lora import seed_dropout
from trainer.training.train_step import TrainState, train_step


@dataclass(eq=False)
class RungTraining:
    """The training of one rung: steps, and what is due after each of them. Made and run by all workers alike."""

    parts: RungParts
    state: TrainState
    reporter: MetricsReporter
    checkpoints: Checkpoints
    timer: StepTimer
    schedule: Schedule
    bar: Bar

    def run(self, stop: StopSignal) -> bool:
        """Trains to the rung's end; returns whether it got there."""
        state, position = self.state, self.parts.position
        end = position.images_before + position.rung.images_seen
        self.timer.begin_rung()
        with open_loader(self.parts, state) as loader:
            while state.images_seen < end:
                with self.timer.step():
                    step = self._step(next(loader), wait_s=loader.wait_s)
                if (step_s := self.timer.step_s()) is not None:
                    warn_of_duration(self.parts, images_seen=state.images_seen, step_s=step_s)
                look = step % self.parts.config.watch.every_steps == 0
                stops = stop.stops(look=look)
                due = self.schedule.due(state.images_seen, batch_size=position.rung.batch_size, look=look)
                self._after_step(due, ends=stops or state.images_seen == end)
                if stops:
                    return state.images_seen == end
        return True

    def _step(self, batch: FeatureBatch, *, wait_s: float) -> int:
        """One optimiser step; returns its number in the stage, from 1."""
        state, collator, size = self.state, self.parts.collator, self.parts.position.rung.batch_size
        settings = step_settings(self.parts, state)
        positions = [state.images_seen + index for index in self.parts.workers.slice(size)]
        seed_dropout(self.parts.config, images_seen=state.images_seen, rank=self.parts.workers.rank)
        batch = replace(batch, captions=collator.captions(batch))  # encoded here where they are not stored
        result = train_step(state, collator.objective, collator.micro_batches(batch, positions), settings)
        state.images_seen += size
        self.bar.advance(size)
        record = step_record(self.parts, batch, settings, images_seen=state.images_seen, wait_s=wait_s)
        self.reporter.add(
            record,
            losses=result.losses,
            gradient_norm=result.gradient_norm,
            timesteps=result.timesteps,
            technique_losses=result.technique_losses,
        )
        return record.step

    def _after_step(self, due: Due, *, ends: bool) -> None:
        """Does what is due after a step. A checkpoint comes last: its thread may then write while training continues."""
        watch = self.parts.config.watch
        self.checkpoints.check()
        if due.validation and watch.is_validated and self.parts.validation:
            with self.reporter.paused(), self.schedule.validation.doing():
                validate(self.parts, self.parts.validation, self.state)
        if due.samples and watch.is_sampled:
            with self.reporter.paused(), self.schedule.samples.doing():
                draw_samples(self.parts, self.state)
        if ends or due.checkpoint:
            self.reporter.flush()
            with self.reporter.paused(), self.schedule.checkpoint.doing():
                write_checkpoint(self.parts, self.state, self.checkpoints)
