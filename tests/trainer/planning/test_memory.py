"""Memory of a plan: it is what a training step takes, by torch's own allocator and by what autograd saves."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.control.control import add_copies, control_sizes
from model.diffusion import Diffusion
from model.dit import Captions, DiT
from model.dit_config import PRESETS, DiTConfig
from model.flops import ControlSizes
from model.generation.memory import OVERHEAD_BYTES
from model.lora.injection import inject
from model.lora.settings import BaseFormat, Injection
from tests.model.real_memory import allocated_peak, saved_bytes
from trainer.config.optim import OptimConfig
from trainer.data.batches import MicroBatch
from trainer.planning.memory import TrainingMemory, count_parameters, measure_activations, training_memory
from trainer.planning.optimizer import optimizer_cost
from trainer.training.ema import Ema
from trainer.training.optimizer import make_moments, make_optimizer, named_moments
from trainer.training.train_step import StepSettings, TrainState, train_step

BATCH, GRID = 6, (16, 12)
TEXT = DiTConfig(sample_size=32, width=48, depth=5, num_heads=4, caption_width=32, max_caption_tokens=20)
ADAMW = OptimConfig()
CLASS = dataclasses.replace(TEXT, conditioning="class", num_classes=5)


def _state(
    config: DiTConfig,
    *,
    gradient_checkpointing: bool,
    optim: OptimConfig = ADAMW,
    lora: Injection | None = None,
    copies: int = 0,
) -> TrainState:
    network = DiT(config).initialise(torch.Generator().manual_seed(0))
    if copies:
        add_copies(network, copies)
    if lora is not None:
        inject(network, lora, seed=0)
    network.gradient_checkpointing = gradient_checkpointing
    optimizer = make_optimizer(network, optim)
    return TrainState(network=network, model=network, optimizer=optimizer, ema=Ema(network), images_seen=0)


def _part(config: DiTConfig, *, with_control: bool = False) -> MicroBatch:
    latents, lengths = (
        torch.randn(BATCH, 4, 2 * GRID[0], 2 * GRID[1]),
        [config.max_caption_tokens - 1] + [config.max_caption_tokens] * 5,
    )
    text = config.conditioning == "text"
    return MicroBatch(
        latents=latents,
        noise=torch.randn_like(latents),
        timesteps=torch.arange(BATCH) * 100.0,
        captions=Captions(torch.randn(sum(lengths), 32).bfloat16(), torch.tensor(lengths)) if text else None,
        class_labels=None if text else torch.zeros(BATCH, dtype=torch.int64),
        control=torch.randn_like(latents) if with_control else None,
    )


def _measured(state: TrainState, precision: torch.dtype) -> int:
    """The peak of a real step on top of weights, moments and average; these are there after the step before."""
    settings = StepSettings(lr=1e-5, ema_decay=0.9, gradient_clip=1.0, precision=precision, num_samples=BATCH)
    config, with_control = state.network.config, len(state.network.control_blocks) > 0
    train_step(state, Diffusion(), [_part(config, with_control=with_control)], settings)
    return allocated_peak(lambda: train_step(state, Diffusion(), [_part(config, with_control=with_control)], settings))


def _saved(state: TrainState, precision: torch.dtype) -> int:
    """The tensors that autograd saves in the forward pass of a real step, without the weights."""
    part = _part(state.network.config)

    def forward() -> torch.Tensor:
        return Diffusion().loss(part.predict(state.network, precision), part.latents, part.noise, part.timesteps).total.mean()

    return saved_bytes(forward, known=state.network.state_dict().values())


def _computed(
    config: DiTConfig, *, checkpointing: bool, precision: str, adapted: Injection | ControlSizes | None = None
) -> TrainingMemory:
    activations = measure_activations(
        config, grid=GRID, gradient_checkpointing=checkpointing, precision=precision, adapted=adapted
    )
    return training_memory(config, activations, num_shards=1, precision=precision, optim=ADAMW, adapted=adapted)


@pytest.mark.parametrize(
    ("config", "checkpointing", "precision"),
    [(TEXT, False, "bfloat16"), (TEXT, True, "bfloat16"), (CLASS, False, "bfloat16"), (CLASS, True, "float32")],
)
def test_the_computed_memory_is_that_of_a_real_step(config: DiTConfig, checkpointing: bool, precision: str) -> None:
    state = _state(config, gradient_checkpointing=checkpointing)
    measured = _measured(state, getattr(torch, precision))
    memory = _computed(config, checkpointing=checkpointing, precision=precision)
    weights = sum(parameter.nbytes for parameter in state.network.parameters())
    moments = [value for moment in state.optimizer.state.values() for name, value in moment.items() if name != "step"]
    assert memory.weights == memory.gradients == memory.ema == weights
    assert memory.optimiser == sum(moment.nbytes for moment in moments)
    computed = memory.gradients + memory.gathered + BATCH * memory.activations_per_image
    assert measured <= computed <= 1.3 * measured
    saved, activations = _saved(state, getattr(torch, precision)), computed - memory.gradients
    assert saved <= activations and (checkpointing or activations <= 1.25 * saved)  # recomputed ones are not saved
    assert memory.total(BATCH) == computed + 4 * weights + OVERHEAD_BYTES


@pytest.mark.parametrize(("checkpointing", "precision"), [(False, "bfloat16"), (True, "float32"), (False, "float32")])
def test_the_computed_memory_of_a_control_is_that_of_a_real_step(checkpointing: bool, precision: str) -> None:
    state = _state(TEXT, gradient_checkpointing=checkpointing, copies=3)
    measured = _measured(state, getattr(torch, precision))
    memory = _computed(TEXT, checkpointing=checkpointing, precision=precision, adapted=control_sizes(TEXT, 3))
    trained = sum(parameter.nbytes for parameter in state.network.parameters() if parameter.requires_grad)
    assert memory.gradients == memory.ema == trained
    assert memory.weights == sum(parameter.nbytes for parameter in state.network.parameters())
    assert memory.optimiser == sum(tensor.nbytes for name, tensor in _moments(state).items() if not name.endswith(".step"))
    computed = memory.gradients + memory.gathered + BATCH * memory.activations_per_image
    assert measured <= computed <= 1.3 * measured


@pytest.mark.parametrize("base", ["float32", "int8"])
@pytest.mark.parametrize(("checkpointing", "precision"), [(False, "bfloat16"), (True, "float32"), (False, "float32")])
def test_the_computed_memory_of_a_lora_is_that_of_a_real_step(base: BaseFormat, checkpointing: bool, precision: str) -> None:
    lora = Injection(rank=4, alpha=4.0, base=base)
    state = _state(TEXT, gradient_checkpointing=checkpointing, lora=lora)
    measured = _measured(state, getattr(torch, precision))
    memory, full = (_computed(TEXT, checkpointing=checkpointing, precision=precision, adapted=one) for one in (lora, None))
    trained = sum(parameter.nbytes for parameter in state.network.parameters() if parameter.requires_grad)
    assert memory.gradients == memory.ema == trained
    held = [*state.network.parameters(), *(one for name, one in state.network.named_buffers() if "embedding" not in name)]
    assert memory.weights == sum(tensor.nbytes for tensor in held)
    assert memory.optimiser == sum(tensor.nbytes for name, tensor in _moments(state).items() if not name.endswith(".step"))
    computed = memory.gradients + memory.gathered + BATCH * memory.activations_per_image
    assert measured <= computed <= 1.5 * measured
    assert memory.fixed < full.fixed


@pytest.mark.parametrize("optim", [OptimConfig(name="muon"), OptimConfig(name="muon", muon_split=False)])
def test_the_cost_of_muon_is_that_of_its_step(optim: OptimConfig) -> None:
    state = _state(TEXT, gradient_checkpointing=False, optim=optim)
    settings = StepSettings(lr=1e-5, ema_decay=0.9, gradient_clip=1.0, precision=torch.float32, num_samples=BATCH)
    train_step(state, Diffusion(), [_part(TEXT)], settings)
    cost = optimizer_cost(TEXT, optim)
    assert cost.num_bytes == sum(tensor.nbytes for name, tensor in _moments(state).items() if not name.endswith(".step"))
    for parameter in state.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    with FlopCounterMode(display=False) as counter:
        state.optimizer.step()
    assert cost.step_flops == counter.get_total_flops() > 0
    adamw = _computed(TEXT, checkpointing=False, precision="float32")
    assert cost.num_bytes < 0.8 * adamw.optimiser and optimizer_cost(TEXT, ADAMW).step_flops == 0


def test_eight_bits_cost_what_torchao_keeps() -> None:
    pytest.importorskip("torchao")
    optim = OptimConfig(name="adamw8bit")
    network = DiT(TEXT)
    optimizer = make_optimizer(network, optim, compiled=False)
    make_moments(optimizer)
    kept = {name: tensor.nbytes for name, tensor in named_moments(optimizer, network).items() if not name.endswith(".step")}
    assert optimizer_cost(TEXT, optim).num_bytes == sum(kept.values())


def _moments(state: TrainState) -> dict[str, torch.Tensor]:
    return named_moments(state.optimizer, state.network)


def test_what_fits_fits_and_one_more_does_not() -> None:
    memory = _computed(TEXT, checkpointing=False, precision="bfloat16")
    most = memory.most_images(2_000_000_000)
    assert memory.total(most) <= 2_000_000_000 < memory.total(most + 1)
    assert memory.most_images(OVERHEAD_BYTES) == 0


def test_fsdp_shares_the_states_and_holds_two_blocks() -> None:
    xl = PRESETS["XL/2"]
    counted = count_parameters(xl)
    assert counted.all == 610_856_096
    activations = measure_activations(TEXT, grid=GRID, gradient_checkpointing=False)
    alone, shared = (training_memory(xl, activations, num_shards=num_shards, optim=ADAMW) for num_shards in (1, 64))
    for name in ("weights", "gradients", "optimiser", "ema"):
        assert getattr(shared, name) == getattr(alone, name) / 64
    assert shared.fixed < alone.fixed / 5
    assert shared.gathered > 2 * 2 * counted.block
