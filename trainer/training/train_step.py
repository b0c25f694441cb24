"""One optimiser step: forward and backward of each micro-batch, clipping, the optimiser, EMA. No files, no random numbers.

Shapes: B samples of this worker.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.diffusion import Objective
from model.dit import DiT, HiddenStates
from trainer.data.batches import MicroBatch
from trainer.training.ema import Ema, whole
from trainer.training.optimizer import set_learning_rate
from trainer.training.techniques.control import ControlState
from trainer.training.techniques.few_steps import Distillation
from trainer.training.techniques.lora import LoraState
from trainer.training.techniques.technique import SharedTechnique, synchronised


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
    techniques: tuple[SharedTechnique, ...] = ()
    """Losses that are added to the objective's, with what they train."""
    lora: LoraState | None = None
    """The adapter that is trained; none: all weights are."""
    control: ControlState | None = None
    """The control that is trained; likewise."""
    distillation: Distillation | None = None
    """Weights that teach a distillation to few steps; none: there is none."""

    @property
    def has_base(self) -> bool:
        """Whether the network's own weights are frozen, and in a base."""
        return self.lora is not None or self.control is not None

    def parameters(self) -> list[nn.Parameter]:
        """All that is trained: the network's, then those of techniques."""
        modules = (self.network, *(shared.technique for shared in self.techniques))
        return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]


@dataclass(frozen=True, eq=False)
class StepResult:
    """Measurements of a step, on the device."""

    losses: Tensor
    """(B,) of the objective, of this worker's samples, in order."""
    gradient_norm: Tensor
    """() before clipping."""
    timesteps: Tensor
    """(B,) of the samples' noise."""
    technique_losses: Mapping[str, Tensor] = field(default_factory=dict)
    """(B,) of each technique that acted, by its name, before its weight."""


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
    techniques: tuple[SharedTechnique, ...] = ()
    """Those of the state that act in this step."""


def train_step(state: TrainState, objective: Objective, batches: Iterable[MicroBatch], settings: StepSettings) -> StepResult:
    """One step of the optimiser over all micro-batches; the state is changed in place. Deterministic on a CPU."""
    losses: list[Tensor] = []
    timesteps: list[Tensor] = []
    added: dict[str, list[Tensor]] = {shared.technique.name: [] for shared in settings.techniques}
    modules = [state.model, *(shared.module for shared in settings.techniques)]
    for batch in batches:
        with synchronised(modules, now=batch.is_last):
            hidden = HiddenStates(frozenset(block for shared in settings.techniques for block in shared.technique.blocks))
            predict = batch.predict(state.model, settings.precision, hidden)
            found = objective.loss(predict, batch.latents, batch.noise, batch.timesteps, mask=batch.loss_mask)
            loss = found.total  # samples of the micro-batch
            losses.append(loss.detach())
            timesteps.append(batch.timesteps)
            for shared in settings.techniques:
                own = shared.loss(hidden.outputs, batch, settings.precision)  # samples of the micro-batch
                loss = loss + shared.technique.weight * own
                added[shared.technique.name].append(own.detach())
            (loss.sum() / settings.num_samples).backward()
    norm = whole(torch.nn.utils.clip_grad_norm_(state.parameters(), settings.gradient_clip))
    set_learning_rate(state.optimizer, settings.lr)
    state.optimizer.step()
    _clear_gradients(state)
    state.ema.update(settings.ema_decay)
    if state.distillation is not None:
        state.distillation.update()
    return StepResult(
        losses=torch.cat(losses),
        gradient_norm=norm.detach(),
        timesteps=torch.cat(timesteps),
        technique_losses={name: torch.cat(parts) for name, parts in added.items()},
    )


def _clear_gradients(state: TrainState) -> None:
    """Frees the gradients; those in DDP's buckets become zero there: freed, they would be accumulated next to the buckets."""
    if not isinstance(state.model, DistributedDataParallel):
        state.optimizer.zero_grad(set_to_none=True)
        return
    state.network.zero_grad(set_to_none=False)
    for shared in state.techniques:
        shared.technique.zero_grad(set_to_none=True)
