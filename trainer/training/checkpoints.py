"""Checkpoints of a training: written by a thread while it runs, whole or not there, and loaded on any number of workers.

    RUN/checkpoints/<images seen>/  transformer/, pipeline.json   the EMA weights: what others read (of a LoRA or control, its)
                                    training/                     weights, EMA, optimiser by torch.distributed.checkpoint
                                    position.json                 the position in the training

A folder is written under a hidden name, synced, and renamed when it is complete. What is random or ordered in a training
follows from the images seen, so that the position is all that is needed besides the tensors.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from foundry.errors import UserError
from foundry.storage.folder import Folder, store_errors
from model.formats.checkpoint import PipelineConfig, save_adapter_checkpoint, save_checkpoint, save_control_checkpoint
from trainer.config.data import AspectRatio
from trainer.config.ladder import Rung
from trainer.config.running import CheckpointConfig
from trainer.distributed import Workers
from trainer.monitoring.run_folder import CHECKPOINTS, list_checkpoints, newest_checkpoint
from trainer.training.networks import network_around
from trainer.training.optimizer import make_moments, named_moments
from trainer.training.techniques.control import averaged_control
from trainer.training.techniques.lora import averaged_adapter
from trainer.training.train_step import TrainState

TRAINING = "training"
POSITION = "position.json"
_DIGITS = 12
_FAILURES = (OSError, SafetensorError, CheckpointException)


@dataclass(frozen=True, kw_only=True)
class Position:
    """The position of a checkpoint in its training, and what must be the same to resume from it."""

    images_seen: int
    """Since the start of the stage."""
    ladder: tuple[Rung, ...]
    """As it was then."""
    seed: int
    """Likewise."""
    features: str
    """Fingerprint of the features of its rung."""
    content: str
    """Digest of the units that they had; see FeatureStore.content."""
    aspect_ratio: AspectRatio = "image"
    """DataConfig.aspect_ratio; the default is that of checkpoints that do not record it."""
    optimizer: str = "adamw"
    """See optimizer_record; likewise."""
    techniques: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of the techniques that were on, by name; checkpoints that do not record them had none."""

    @classmethod
    def read(cls, checkpoint: Path) -> "Position":
        """Raises UserError for a checkpoint that is no training's."""
        path = checkpoint / POSITION
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**values | {"ladder": tuple(Rung(**rung) for rung in values["ladder"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): remove {checkpoint}, and the checkpoint before it is used"
            ) from None


class Checkpoints:
    """Writes a run's checkpoints one at a time, in a thread. All workers make the same calls."""

    def __init__(self, run: Path, config: CheckpointConfig, workers: Workers) -> None:
        self.folder = run / CHECKPOINTS
        self._config = config
        self._workers = workers
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        is_cuda = workers.device.type == "cuda"  # pinned memory, which is slow to get, is kept from one checkpoint to the next
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=is_cuda, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=is_cuda
            )
        )

    def save(self, state: TrainState, pipeline: PipelineConfig, position: Position) -> None:
        """Copies the state and has it written; waits for the one before. Raises UserError where that could not be written."""
        self.wait()
        final = self.folder / f"{state.images_seen:0{_DIGITS}d}"
        partial = self.folder / f".{final.name}.partial"
        exists = self._workers.from_first(final.exists())
        if exists:
            return
        if self._workers.is_first:
            shutil.rmtree(partial, ignore_errors=True)
            with store_errors(Folder(str(self.folder))):
                partial.mkdir(parents=True)
        self._workers.gather(None)  # the folder is there for all
        write = _averages(state, pipeline, keep=self._workers.is_first)
        alone = self._workers.num == 1
        tensors = async_save(
            training_tensors(state),
            checkpoint_id=partial / TRAINING,
            process_group=self._workers.saving,
            async_stager=self._stager,
            no_dist=alone,
        )
        assert isinstance(tensors, Future)
        self._pending = self._thread.submit(
            self._write,
            partial=partial,
            final=final,
            tensors=tensors,
            write=write,
            position=position,
        )

    def remove_partial(self) -> None:
        """Removes checkpoints that a killed training left incomplete. Called once, before anything is saved."""
        if self._workers.is_first and self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name.startswith("."):
                    shutil.rmtree(path, ignore_errors=True)

    def wait(self) -> None:
        """Returns when nothing is being written. Raises UserError where it failed; the checkpoints before are untouched."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except _failures(self._workers) as error:
            last = newest_checkpoint(self.folder.parent)
            resumes = f"{last} is whole, and the same command resumes from there" if last else "there is none before it"
            raise UserError(
                f"a checkpoint could not be written ({_first_cause(error)}): make room in {self.folder}; {resumes}"
            ) from error

    def check(self) -> None:
        """Like wait, where what was being written is done; returns at once where it is not."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def close(self) -> None:
        """Ends the thread after its work, and frees the memory for copies."""
        self._thread.shutdown()
        self._stager.close()

    def _write(
        self,
        *,
        partial: Path,
        final: Path,
        tensors: "Future[Any]",
        write: Callable[[Path], object] | None,
        position: Position,
    ) -> None:
        try:
            try:
                if write is not None:
                    write(partial)
                    (partial / POSITION).write_text(json.dumps(asdict(position), indent=1) + "\n", encoding="utf-8")
            finally:
                tensors.result()  # the thread of torch must have ended before its folder goes
        except (*_FAILURES, RuntimeError):
            if self._workers.is_first:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        if write is not None:
            _sync(partial)
            os.replace(partial, final)
            _sync_folder(self.folder)
            self._prune()

    def _prune(self) -> None:
        checkpoints = list_checkpoints(self.folder.parent)
        kept = kept_checkpoints([int(path.name) for path in checkpoints], self._config)
        for path in checkpoints:
            if int(path.name) not in kept:
                hidden = path.with_name(f".{path.name}.removed")
                os.replace(path, hidden)
                shutil.rmtree(hidden, ignore_errors=True)


def load_training(checkpoint: Path, state: TrainState, workers: Workers) -> None:
    """Fills a state from a checkpoint of any number of workers. Raises UserError where its files are damaged or of another."""
    tensors = training_tensors(state)
    try:
        load(tensors, checkpoint_id=checkpoint / TRAINING, no_dist=workers.num == 1)
    except _failures(workers, ValueError) as error:
        raise UserError(
            f"{checkpoint / TRAINING} cannot be loaded ({_first_cause(error)}): remove {checkpoint}, and the one before is used"
        ) from error
    state.images_seen = int(checkpoint.name)


def training_tensors(state: TrainState) -> dict[str, Any]:
    """All tensors of a state by name; those of the optimiser are made where it has not stepped yet."""
    make_moments(state.optimizer)
    moments = named_moments(state.optimizer, state.network)
    network = _detached(state.network)
    if state.has_base:  # its frozen weights are in its base
        network = {name: network[name] for name in state.ema.weights}
    found = {"network": network, "ema": dict(state.ema.weights), "optimizer": moments}
    if state.distillation is not None:
        found |= state.distillation.tensors()
    for shared in state.techniques:
        name, technique = shared.technique.name, shared.technique
        if weights := _detached(technique):
            found |= {f"{name}.weights": weights, f"{name}.optimizer": named_moments(state.optimizer, technique)}
    return found


def _averages(state: TrainState, pipeline: PipelineConfig, *, keep: bool) -> Callable[[Path], object] | None:
    """What writes the average's weights into a folder: network, LoRA or control; none unless `keep`. All workers call it."""
    config = state.network.config
    if state.lora is not None:
        adapter = averaged_adapter(state.ema, state.lora, keep=keep)
        return None if adapter is None else lambda folder: save_adapter_checkpoint(folder, adapter, config, pipeline)
    if state.control is not None:
        control = averaged_control(state.ema, state.control, keep=keep)
        return None if control is None else lambda folder: save_control_checkpoint(folder, control, config, pipeline)
    weights = state.ema.full_weights(keep=keep)
    if not keep:
        return None
    # Made here, not by the thread that writes: another thread that loads a model may make all new parameters empty meanwhile,
    # since accelerate replaces nn.Module.register_parameter for that.
    network = network_around(config, weights)
    return lambda folder: save_checkpoint(folder, network, pipeline)


def _detached(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in module.state_dict().items()}


def kept_checkpoints(images_seen: Iterable[int], config: CheckpointConfig) -> set[int]:
    """The checkpoints that are kept: the newest, and for good the first at or after each multiple of keep_every_images."""
    ordered = sorted(images_seen)
    kept = set(ordered[-config.keep_last :])
    if config.keep_every_images:
        first: dict[int, int] = {}
        for images in ordered:
            first.setdefault(images // config.keep_every_images, images)
        kept |= {images for multiple, images in first.items() if multiple > 0}
    return kept


def _failures(workers: Workers, *others: type[BaseException]) -> tuple[type[BaseException], ...]:
    """Errors of files. Among several workers a RuntimeError is the loss of another one, after which the training restarts."""
    return (*_FAILURES, *others) if workers.num > 1 else (*_FAILURES, *others, RuntimeError)


def _sync(folder: Path) -> None:
    """Syncs all files of a folder to the disk."""
    for path in sorted(folder.rglob("*")):
        _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_cause(error: BaseException) -> str:
    """The operating system's or the library's own words, without the stack of wrappers."""
    if isinstance(error, CheckpointException) and error.failures:
        return _first_cause(next(iter(error.failures.values()))[0])
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
