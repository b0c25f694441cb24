"""One optimiser step: forward and backward of each part of a batch, clipping, AdamW, EMA. No files, no random numbers.

Shapes: B samples of a part, C latent channels, h x w the sides of the latents.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from model.diffusion import Objective
from model.dit import Captions, DiT
from trainer.training.optimizer import Ema, whole


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainPart:
    """Samples that the network sees at once, on its device."""

    latents: Tensor
    """(B, C, h, w) float32."""
    noise: Tensor
    """(B, C, h, w) float32."""
    timesteps: Tensor
    """(B,) in 0..1000."""
    captions: Captions | None = None
    class_labels: Tensor | None = None
    """(B,) int64; the number of classes stands for none."""
    sizes: Tensor | None = None
    """(B, 2) original height and width in pixels, for micro-conditioning."""
    is_last: bool = True
    """After it the gradients of all workers meet."""

    def predict(self, model: nn.Module, precision: torch.dtype) -> "Prediction":
        """The network with these conditions bound."""
        return Prediction(model, self, precision)


@dataclass(frozen=True, eq=False)
class Prediction:
    """A network as objectives call it: noisy latents and timesteps to a prediction, under autocast."""

    model: nn.Module
    part: TrainPart
    precision: torch.dtype

    def __call__(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        """(B, C or 2 C, h, w)."""
        sizes = self.part.sizes
        with torch.autocast(latents.device.type, dtype=self.precision, enabled=self.precision != torch.float32):
            return self.model(  # type: ignore[no-any-return]
                latents,
                timesteps,
                captions=self.part.captions,
                class_labels=self.part.class_labels,
                sizes=sizes,
                aspect_ratios=None if sizes is None else sizes[:, :1] / sizes[:, 1:],
            )


@dataclass(eq=False, kw_only=True)
class TrainState:
    """What a training is made of, apart from its settings. All of it, and nothing else, is in a checkpoint."""

    network: DiT
    """The parameters, float32."""
    model: nn.Module
    """What is called: the network, or DDP around it."""
    optimizer: torch.optim.Optimizer
    ema: Ema
    images_seen: int
    """By this stage: the position in everything that follows an order."""


@dataclass(frozen=True, eq=False)
class StepResult:
    """What a step measured, on the device."""

    losses: Tensor
    """(B,) of this worker's samples, in order."""
    gradient_norm: Tensor
    """() before clipping."""


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What differs from step to step, or stays."""

    lr: float
    """Learning rate."""
    ema_decay: float
    """What the average keeps of itself."""
    gradient_clip: float
    """Largest norm of the gradient."""
    precision: torch.dtype
    """Of matrix products."""
    num_samples: int
    """Samples of this worker in the step, over all parts."""


def train_step(state: TrainState, objective: Objective, parts: Iterable[TrainPart], settings: StepSettings) -> StepResult:
    """One step of the optimiser over all parts; the state is changed in place. Deterministic on a CPU."""
    losses = []
    for part in parts:
        with _gradients_meet(state.model, part.is_last):
            predict = part.predict(state.model, settings.precision)
            loss = objective.loss(predict, part.latents, part.noise, part.timesteps).total  # (B,)
            (loss.sum() / settings.num_samples).backward()
        losses.append(loss.detach())
    norm = whole(torch.nn.utils.clip_grad_norm_(state.network.parameters(), settings.gradient_clip))
    for group in state.optimizer.param_groups:
        group["lr"] = settings.lr
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.ema.update(settings.ema_decay)
    return StepResult(losses=torch.cat(losses), gradient_norm=norm.detach())


def _gradients_meet(model: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Whether the backward pass inside adds up the gradients of all workers."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
    elif isinstance(model, DistributedDataParallel) and not now:
        return model.no_sync()
    return nullcontext()
