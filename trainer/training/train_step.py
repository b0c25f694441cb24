"""One optimiser step: forward and backward of each micro-batch, clipping, optimiser, EMA. No files, no random numbers.

Shapes: B samples of this worker.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from model.diffusion import Objective
from model.dit import DiT
from trainer.data.batches import MicroBatch
from trainer.training.ema import Ema, whole
from trainer.training.optimizer import set_learning_rate


@dataclass(eq=False, kw_only=True)
class TrainState:
    """The state of a training. All of it, and nothing else, is in a checkpoint."""

    network: DiT
    """The parameters, float32."""
    model: nn.Module
    """The module that is called: the network, or DDP around it."""
    optimizer: torch.optim.Optimizer
    ema: Ema
    images_seen: int
    """By this stage: its position in the order of the data and in the schedules."""


@dataclass(frozen=True, eq=False)
class StepResult:
    """Measurements of a step, on the device."""

    losses: Tensor
    """(B,) of this worker's samples, in order."""
    gradient_norm: Tensor
    """() before clipping."""


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """Settings of one step."""

    lr: float
    """Learning rate."""
    ema_decay: float
    """Share of the moving average that is kept in this step."""
    gradient_clip: float
    """Largest norm of the whole gradient."""
    precision: torch.dtype
    """Number format of matrix products."""
    num_samples: int
    """Samples of this worker in the step, over all micro-batches."""


def train_step(state: TrainState, objective: Objective, batches: Iterable[MicroBatch], settings: StepSettings) -> StepResult:
    """One step of the optimiser over all micro-batches; the state is changed in place. Deterministic on a CPU."""
    losses = []
    for batch in batches:
        with _sync_gradients(state.model, batch.is_last):
            predict = batch.predict(state.model, settings.precision)
            loss = objective.loss(predict, batch.latents, batch.noise, batch.timesteps).total  # samples of the micro-batch
            (loss.sum() / settings.num_samples).backward()
        losses.append(loss.detach())
    norm = whole(torch.nn.utils.clip_grad_norm_(state.network.parameters(), settings.gradient_clip))
    set_learning_rate(state.optimizer, settings.lr)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.ema.update(settings.ema_decay)
    return StepResult(losses=torch.cat(losses), gradient_norm=norm.detach())


def _sync_gradients(model: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Has the backward pass inside all-reduce the gradients, or not."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
    elif isinstance(model, DistributedDataParallel) and not now:
        return model.no_sync()
    return nullcontext()
