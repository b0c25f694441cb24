"""Costs of adaLN-single and per-block adaLN: parameters, memory and time of a training step on the same samples.

Part of `python -m benchmarks.staged_training --experiments adaln`, and the command `python -m benchmarks.adaln_step`.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.staged_adaln import PerBlockDiT
from foundry.hardware import auto_dtype
from model.diffusion import Objective, make_objective
from model.dit import DiT
from model.dit_config import PRESETS, DiTConfig
from model.formats.checkpoint import read_pipeline_config, read_transformer_config
from model.generation.memory import storage_counter
from trainer.config.train import TrainConfig
from trainer.data.batches import Collator, MicroBatch
from trainer.data.order import in_order
from trainer.distributed import Workers
from trainer.features.store import FeatureStore, SampleRequest
from trainer.training.networks import attention_kernel, make_state
from trainer.training.train_step import StepSettings, TrainState, train_step

NETWORKS: Mapping[str, type[DiT]] = {"single": DiT, "per_block": PerBlockDiT}
_WARMUP_STEPS = 3


def adaln_costs(
    checkpoint: Path,
    features: Path,
    *,
    batch_size: int,
    timed_steps: int,
    compiled: bool,
    attention: Literal["auto", "math"],
) -> dict[str, float]:
    """Figures by name, for each network: of networks of the checkpoint's sizes, and parameters at the paper's size.

    memory_bytes: weights, moments and average, and the most that an uncompiled step, with its gradients, adds to them. step_s:
    median of steps in turn, in seconds, with all matrix products in the number format that `auto` means here, those of the
    modulation too; step_s_float32: in float32; step_s_as_trained: the modulation in float32, all else as `auto`, as trainings
    compute. A per-block MLP is multiplied in each block, a shared one once, so that float32 next to bf16 costs the first one
    more. `compiled` and `attention` are `compile` and `attention` of the training that the costs belong to.
    """
    config, pipeline = read_transformer_config(checkpoint), read_pipeline_config(checkpoint)
    objective = make_objective(pipeline.objective, pipeline.objective_settings)
    part = _samples(features, config, objective, batch_size)
    figures: dict[str, float] = {}
    for name, network in NETWORKS.items():
        figures[f"parameters_{name}"] = count_parameters(network, config)
        figures[f"parameters_xl_{name}"] = count_parameters(network, PRESETS["XL/2"])
    with attention_kernel(attention):
        for name, network in NETWORKS.items():
            figures[f"memory_bytes_{name}"] = _memory(_state(network, config, compiled=False), objective, part)
        for measure, (precision, modulation) in _formats().items():
            states = {
                name: _state(network, config, compiled=compiled, modulation=modulation) for name, network in NETWORKS.items()
            }
            steps = {name: _stepper(state, objective, part, precision) for name, state in states.items()}
            figures |= {f"{measure}_{name}": value for name, value in _in_turn(steps, timed_steps).items()}
    return figures


def _formats() -> dict[str, tuple[torch.dtype, torch.dtype]]:
    """Figures of a step's time: the number format of its matrix products, and of those of the modulation."""
    auto: torch.dtype = getattr(torch, auto_dtype())
    return {
        "step_s": (auto, auto),
        "step_s_float32": (torch.float32, torch.float32),
        "step_s_as_trained": (auto, torch.float32),
    }


class InFormat(nn.Module):
    """The module with its matrix products in a number format, whatever the autocast around it says."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Like the module's, in float32."""
        with torch.autocast(x.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            found: Tensor = self.module(x)
        return found.float()


def modulate_in(network: DiT, dtype: torch.dtype) -> DiT:
    """The network with the MLPs of its modulation, shared or per block, in a number format; for timing, not for checkpoints."""
    if isinstance(network, PerBlockDiT):
        for part in (*network.blocks, network.final_layer):
            part.adaLN_modulation = InFormat(part.adaLN_modulation, dtype)
    else:
        network.t_block = InFormat(network.t_block, dtype)  # type: ignore[assignment]
    return network


def count_parameters(network: type[DiT], config: DiTConfig) -> int:
    """Number of parameters, counted without allocating them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in network(config).parameters())


def _samples(features: Path, config: DiTConfig, objective: Objective, batch_size: int) -> MicroBatch:
    """The first batch of the validation split, with drawn noise and timesteps."""
    store = FeatureStore.open(str(features))
    batch = next(in_order(store.samples("validation"), batch_size=batch_size))
    collator = Collator(
        network=config,
        objective=objective,
        scale=store.scale,
        device=torch.device("cpu"),
        seed=0,
        class_dropout=0.0,
        device_tokens=batch_size * config.base_grid**2,
    )
    read = store.read([SampleRequest(unit=unit, row=row, caption=0) for unit, row in batch.samples])
    (part,) = collator.micro_batches(read, range(len(batch.samples)))
    return part


def _state(network: type[DiT], config: DiTConfig, *, compiled: bool, modulation: torch.dtype = torch.float32) -> TrainState:
    settings = TrainConfig(stage="all", compile=compiled)
    made = network(config).initialise(torch.Generator().manual_seed(0))
    return make_state(modulate_in(made, modulation), settings, Workers())


def _stepper(state: TrainState, objective: Objective, part: MicroBatch, precision: torch.dtype) -> Callable[[], object]:
    settings = StepSettings(lr=1e-4, ema_decay=0.99, gradient_clip=1.0, precision=precision, num_samples=len(part.timesteps))
    return lambda: train_step(state, objective, [part], settings)


def _memory(state: TrainState, objective: Objective, part: MicroBatch) -> int:
    """Memory after a first step, which makes the moments; gradients are freed between steps, and part of the peak."""
    step = _stepper(state, objective, part, getattr(torch, auto_dtype()))
    step()
    moments = [value for moment in state.optimizer.state.values() for value in moment.values()]
    known = [*state.network.parameters(), *state.ema.weights.values(), *moments]
    with storage_counter({tensor.untyped_storage()._cdata for tensor in known}) as counter:
        step()
    kept: int = sum(tensor.nbytes for tensor in known)
    return kept + int(counter.peak)


def _in_turn(steps: Mapping[str, Callable[[], object]], timed_steps: int) -> dict[str, float]:
    """Median seconds of each, after some that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(_WARMUP_STEPS + timed_steps):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values[_WARMUP_STEPS:]) for name, values in seconds.items()}
