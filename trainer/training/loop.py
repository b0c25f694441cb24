"""The training loop: the rungs of a stage's ladder, one after the other, to the end or until it is told to stop.

All that is random or ordered follows from the seed and the images seen, so that a training that was killed resumes from its
last checkpoint bit for bit as if it had not been interrupted (on CPUs; on as many workers).
"""

import warnings
from dataclasses import replace
from pathlib import Path

import torch

from foundry.errors import UserError
from foundry.hardware import AUTO, auto_dtype, keep_freed_memory
from foundry.reporting.progress import Bar, shows_bars
from foundry.wording import counted
from trainer.config.data import is_query
from trainer.config.ladder import LadderPosition, ladder_position
from trainer.config.train import TrainConfig
from trainer.data.queries import PURPOSES, Purpose, answer_file, asked_dataset, write_answer
from trainer.distributed import Workers, join_workers
from trainer.features.plan import TRAIN
from trainer.features.store import FeatureStore
from trainer.monitoring.cadence import Schedule
from trainer.monitoring.forecast import StepTimer, stage_passes_warning
from trainer.monitoring.metrics import MetricsReporter
from trainer.monitoring.run_folder import CHECKPOINTS, RunFolder, StopSignal, recorded_precision
from trainer.monitoring.tracking.process import tracked
from trainer.training.checkpoints import Checkpoints, Position
from trainer.training.networks import attention_kernel, lora_text, open_features, sizes_text
from trainer.training.rung import RungTraining
from trainer.training.rung_parts import open_rung, peak_flops
from trainer.training.start import Start, check_workers, cleaning_note, find_start, keep_scale, open_state, run_path
from trainer.training.techniques.control import control_text
from trainer.training.train_step import TrainState

_WAIT_FOR_RUN_S = 60.0


def train_here(config: TrainConfig, *, device: str) -> bool:
    """Trains one stage as the only worker, or as one that Ray or torchrun started; returns whether it is done."""
    try:
        with join_workers(device, timeout_s=config.distributed.timeout_s) as workers:
            return train(config, workers)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of memory ({str(error).splitlines()[0]}): give gradient_checkpointing, or fewer device_tokens than "
            f"{config.device_tokens}; the batch stays as it is"
        ) from error


def train(config: TrainConfig, workers: Workers) -> bool:
    """Trains a stage; returns whether it is done, or was told to stop. All workers call it. Raises UserError."""
    run = RunFolder(run_path(config), workers)
    with run.held(wait_s=_WAIT_FOR_RUN_S):  # found in it, since the training that had the folder may have saved a checkpoint
        return _train(config, workers, run, workers.from_first(find_start(config) if workers.is_first else None))


def _train(config: TrainConfig, workers: Workers, run: RunFolder, start: Start) -> bool:
    position = ladder_position(config.ladder, start.images_seen)
    if position is None:
        run.say(f"{config.stage}: all {start.images_seen} images are seen, the newest checkpoint is {start.checkpoint}")
        with tracked(run, config.watch, is_first=workers.is_first):
            return True
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process needs none
    check_workers(config, workers.num)
    keep_freed_memory()
    config = with_precision(config, run.path if start.resumes else None, workers)
    chosen = with_answers(config, run, config.features_folder(position.rung), workers)
    store = open_features(chosen, position.rung, workers)
    scale_line = keep_scale(start, store)
    state = open_state(config, start, rung=position.rung, store=store, workers=workers)
    run.start(config, workers, origin=str(start), images_seen=start.images_seen)
    _say_start(config, workers, run, start, sizes=sizes_text(state.network.config))
    if state.lora is not None:
        run.say(lora_text(state))
    if state.control is not None:
        run.say(control_text(state.network, state.control))
    if note := cleaning_note(start, config, store.info):
        run.say(note)
    if scale_line:
        run.say(scale_line)
    within = start.images_seen > position.images_before
    if within and start.checkpoint and Position.read(start.checkpoint).content != store.content:
        run.say(
            f"the samples of {store.folder.url} are not those of the checkpoint (more features, or another data.skip "
            "or data.weights): from here on their order is another one"
        )
    if workers.is_first:
        run.warn_once(stage_passes_warning(chosen, position.rung, images_per_pass=store.images_per_pass(TRAIN)))
    with tracked(run, config.watch, is_first=workers.is_first):
        stopped_in = _train_rungs(chosen, workers, run, position=position, state=state, store=store)
    ending = "done" if stopped_in is None else "stopped; the same command resumes it"
    run.say(f"{config.stage}: {ending}; {state.images_seen} images seen, checkpoints in {run.path / CHECKPOINTS}")
    return stopped_in is None


def _train_rungs(
    config: TrainConfig, workers: Workers, run: RunFolder, *, position: LadderPosition, state: TrainState, store: FeatureStore
) -> LadderPosition | None:
    """Trains the rungs from a position on; returns the one in which it was told to stop, None at the end of the ladder."""
    timer = StepTimer(wait_for_device=workers.wait_for_device)
    reporter = MetricsReporter(run, config.watch, workers, peak_flops=peak_flops(config, workers.device), skip=config.data.skip)
    checkpoints = Checkpoints(run.path, config.checkpoint, workers)
    schedule = Schedule(config.checkpoint, config.watch, workers)
    checkpoints.remove_partial()

    def open_training(at: LadderPosition, features: FeatureStore) -> RungTraining:
        parts = open_rung(config, at, workers=workers, run=run, state=state, store=features)
        return RungTraining(parts, state, reporter, checkpoints, timer, schedule, bar)

    now: LadderPosition | None = position
    is_shown = workers.is_first and shows_bars()  # elsewhere the lines of the log say how far it is
    bar = Bar(config.stage, total=config.images, before=state.images_seen, shown=is_shown)
    try:
        with attention_kernel(config.attention), StopSignal(run, workers) as stop, bar:
            while now is not None and open_training(now, store).run(stop):  # which frees one rung's parts before the next
                now = ladder_position(config.ladder, state.images_seen)
                if now is not None:
                    store = open_features(config, now.rung, workers).scaled(store.info.measured_scale)
        checkpoints.wait()
    finally:
        checkpoints.close()
    return now


def with_answers(config: TrainConfig, run: RunFolder, features: str, workers: Workers) -> TrainConfig:
    """The settings with a file of the run's folder for each SQL that chooses or weighs samples; it is asked once a start.

    Raises UserError where the data set does not answer, or is not known.
    """
    data = config.data
    queries: dict[Purpose, str] = {purpose: sql for purpose in PURPOSES if (sql := getattr(data, purpose)) and is_query(sql)}
    if queries and workers.is_first:
        dataset = data.dataset or asked_dataset(features)
        for purpose, sql in queries.items():
            write_answer(sql, purpose=purpose, dataset=dataset, training=run.path)
    workers.gather(None)  # the files are there for all
    files = {purpose: str(answer_file(run.path, purpose)) for purpose in queries}
    return replace(config, data=replace(data, skip=files.get("skip", data.skip), weights=files.get("weights", data.weights)))


def _say_start(config: TrainConfig, workers: Workers, run: RunFolder, start: Start, *, sizes: str) -> None:
    run.say(f"{config.stage}: {start}; {sizes}; {counted(workers.num, 'worker')}, {workers.device.type}, {config.precision}")
    if start.resumes and config.precision == "bfloat16" and auto_dtype(str(workers.device)) == "float32":
        run.say("it began in bfloat16, which this hardware only emulates, slowly: precision float32 is quicker here")


def with_precision(config: TrainConfig, resumed: Path | None, workers: Workers) -> TrainConfig:
    """The settings without `auto` as the precision: what the `resumed` run began with, else what all devices have."""
    if config.precision != AUTO:
        return config
    begun_in = workers.from_first(recorded_precision(resumed) if resumed is not None else None)
    found = workers.gather(auto_dtype(str(workers.device)))
    return replace(config, precision=begun_in or ("float32" if "float32" in found else "bfloat16"))
