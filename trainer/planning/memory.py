"""Memory of a GPU in training, from the configuration alone: nothing is loaded or run.

Weights, gradients, EMA (float32) and the optimiser's moments are counted. Activations are those of the real network and its
loss, run forward and backward on tensors without data (torch's fake tensors) with one and two blocks; the rest of the depth is
linear.
Assumptions, on the safe side:
- eager, which torch.compile undercuts; attention does not materialise its matrix (flash or memory-efficient kernels);
- gradients are there during the next forward and backward pass, as they are when batches are accumulated;
- every caption has the longest length; DDP's buckets are the gradients themselves (gradient_as_bucket_view);
- while micro-batches are accumulated, FSDP keeps the gradients whole on every GPU;
- autocast keeps a copy of the blocks' matrices in bf16; under FSDP those of text blocks arrive so, two blocks at a time;
- model.generation.memory.OVERHEAD_BYTES for CUDA's context, workspaces and the allocator's gaps.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from model.dit_config import DiTConfig
from model.flops import ControlSizes
from model.lora.settings import Injection
from trainer.config.optim import OptimConfig
from trainer.planning.optimizer import optimizer_cost
from trainer.planning.techniques import TechniqueCost

if TYPE_CHECKING:
    import torch

    from model.dit import DiT
    from trainer.data.batches import MicroBatch

_FLOAT_BYTES = 4
_MEASURED_IMAGES = 8
"""Images of a measurement: enough that memory which does not grow with them is negligible."""


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes on one GPU."""

    weights: float
    """Weights of the network, float32."""
    gradients: float
    """Gradients, float32."""
    optimiser: float
    """The optimiser's moments."""
    ema: float
    """Moving average of the weights, float32."""
    gathered: float
    """Whole blocks that FSDP gathers at a time; else autocast's copies of the blocks' matrices."""
    activations_per_image: float
    """Activations per image of a micro-batch, with its inputs."""
    techniques: float = 0.0
    """Bytes that techniques train, with gradients and moments, float32; and their frozen models."""

    @property
    def fixed(self) -> float:
        """The part that does not depend on the images, with the overhead."""
        from model.generation.memory import OVERHEAD_BYTES

        return self.weights + self.gradients + self.optimiser + self.ema + self.gathered + self.techniques + OVERHEAD_BYTES

    def total(self, num_images: int) -> float:
        """Bytes with this many images at once."""
        return self.fixed + num_images * self.activations_per_image

    def most_images(self, memory_bytes: float) -> int:
        """The most images that fit at once; 0: not even one."""
        return max(0, int((memory_bytes - self.fixed) / self.activations_per_image))


@dataclass(frozen=True, kw_only=True)
class Activations:
    """The most bytes of activations of an image, and in which pass."""

    forward: float
    backward: float


@dataclass(frozen=True, kw_only=True)
class NetworkParameters:
    """Numbers of parameters."""

    all: int
    """Parameters of the network."""
    block: int
    """Parameters of the largest block."""
    block_matrices: int
    """Parameters of the linear layers of all blocks and of the text adapter, which autocast copies."""
    matrices: int
    """Values of their matrices alone, without biases and norms."""
    saved_by_int8: int
    """Bytes that these take less in 8 bits, with a scale for each row, than in float32."""


def training_memory(
    config: DiTConfig,
    activations: Activations,
    *,
    num_shards: int,
    precision: str = "bfloat16",
    optim: OptimConfig,
    techniques: Sequence[TechniqueCost] = (),
    adapted: Injection | ControlSizes | None = None,
    accumulates: bool = False,
) -> TrainingMemory:
    """Memory of one of `num_shards` GPUs that share the weights; `activations` as measured for the same precision.

    `accumulates`: a GPU's share of a batch is more than one micro-batch.

    `adapted`: the settings of a LoRA, or the sizes of a control, that is trained in place of the weights.
    """
    from model.lora.injection import lora_sizes

    counted = count_parameters(config)
    adapter = lora_sizes(config, adapted) if isinstance(adapted, Injection) else adapted
    shared_by = num_shards
    trained = _FLOAT_BYTES * (counted.all if adapter is None else adapter.num_parameters) / shared_by
    low, travels_low = precision != "float32", config.conditioning == "text"
    share = 1 + (adapter.num_blocks / config.depth if isinstance(adapter, ControlSizes) else 0)
    copies = 2 * share * counted.block_matrices if low and not (shared_by > 1 and travels_low) else 0
    weights = _FLOAT_BYTES * counted.all / shared_by + (trained if adapter is not None else 0)
    if isinstance(adapted, Injection) and adapted.base == "int8":  # whole on every GPU, and no copies of them
        frozen = _FLOAT_BYTES * (counted.all - counted.matrices) / shared_by
        weights, copies = frozen + _FLOAT_BYTES * counted.matrices - counted.saved_by_int8 + trained, 0
    gathered = 0.0
    if shared_by > 1:  # two blocks' weights, their gradients before and after the cast; all else whole, and its gradients
        rest = counted.all - config.depth * counted.block
        gathered = (3 if low and travels_low else 4) * _FLOAT_BYTES * counted.block + 2 * _FLOAT_BYTES * rest
        if accumulates:
            gathered += trained * shared_by
    return TrainingMemory(
        weights=weights,
        gradients=trained,
        optimiser=optimizer_cost(config, optim, adapter).num_bytes / shared_by,
        ema=trained,
        gathered=gathered + copies,
        activations_per_image=max(activations.forward, activations.backward)
        + sum(cost.activations_per_image for cost in techniques),
        techniques=sum(cost.fixed_bytes(shared_by=shared_by) for cost in techniques),
    )


def count_parameters(config: DiTConfig) -> NetworkParameters:
    """Counts the parameters of the network of a configuration."""
    import torch

    from model.dit import DiT
    from model.layers.matrices import block_matrices

    with torch.device("meta"):
        dit = DiT(config)
    sizes = [sum(parameter.numel() for parameter in block.parameters()) for block in dit.blocks]
    matrices = sum(parameter.numel() for part in _matrix_parts(dit) for parameter in part.parameters())
    weights = [dit.get_parameter(name) for name in block_matrices(dit)]
    return NetworkParameters(
        all=sum(parameter.numel() for parameter in dit.parameters()),
        block=max(sizes),
        block_matrices=matrices,
        matrices=sum(weight.numel() for weight in weights),
        saved_by_int8=sum((_FLOAT_BYTES - 1) * weight.numel() - _FLOAT_BYTES * len(weight) for weight in weights),
    )


def measure_activations(
    config: DiTConfig,
    *,
    grid: tuple[int, int],
    gradient_checkpointing: bool,
    precision: str = "bfloat16",
    adapted: Injection | ControlSizes | None = None,
) -> Activations:
    """Bytes of activations per image of a grid (h, w) of patches, without the bf16 copy of the weights.

    `adapted`: the settings of a LoRA, or the sizes of a control, that is trained in place of the weights.
    """
    # Blocks with compression only save memory, and are not alike: depth would not be linear.
    plain = replace(config, kv_compression=replace(config.kv_compression, layers=()))
    measure = partial(_peaks, grid=grid, gradient_checkpointing=gradient_checkpointing, precision=precision)
    if isinstance(adapted, ControlSizes):
        first, deeper, both = (measure(replace(plain, depth=depth), copies=num) for depth, num in ((2, 1), (3, 1), (3, 2)))
        copies = adapted.num_blocks - 1
        return _extrapolated(first, (deeper, config.depth - 2), others=(deeper, both, copies))
    one, two = (measure(replace(plain, depth=depth), lora=adapted) for depth in (1, 2))
    return _extrapolated(one, (two, config.depth - 1))


def _extrapolated(
    first: Activations, more: tuple[Activations, int], *, others: tuple[Activations, Activations, int] | None = None
) -> Activations:
    """Bytes per image of `first`, with what one more block adds to it, so many times; `others`: what one more copy adds."""

    def of(one: float, two: float, less: float, greater: float) -> float:
        return (one + more[1] * (two - one) + (others[2] if others else 0) * (greater - less)) / _MEASURED_IMAGES

    low, high = (others[0], others[1]) if others else (first, first)
    return Activations(
        forward=of(first.forward, more[0].forward, low.forward, high.forward),
        backward=of(first.backward, more[0].backward, low.backward, high.backward),
    )


def _matrix_parts(dit: "DiT") -> "list[torch.nn.Module]":
    """The parts of the blocks that run in low precision: attention and MLPs, but not the modulation."""
    names = ("attn", "cross_attn", "mlp", "before", "after")
    blocks = (*dit.text_adapter, *dit.blocks, *dit.control_blocks, *(copy.block for copy in dit.control_blocks))
    return [getattr(block, name) for block in blocks for name in names if hasattr(block, name)]


def _peaks(
    config: DiTConfig,
    *,
    grid: tuple[int, int],
    gradient_checkpointing: bool,
    precision: str,
    lora: Injection | None = None,
    copies: int = 0,
) -> Activations:
    """The peaks of a whole batch of _MEASURED_IMAGES, besides the weights and gradients."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from model.control.control import add_copies
    from model.diffusion import Diffusion
    from model.dit import DiT
    from model.generation.memory import replace_tensors, storage_counter
    from model.lora.injection import inject

    low = precision != "float32"
    with torch.device("meta"):
        dit = DiT(config)
        if lora is not None:
            inject(dit, replace(lora, base="float32"), seed=0)
        if copies:
            add_copies(dit, copies)
    trained = {name for name, parameter in dit.named_parameters() if parameter.requires_grad}
    if low:
        for module in _matrix_parts(dit):
            module.to(torch.bfloat16)
    if lora is not None or copies:
        for name in trained:  # in float32, as they are trained
            dit.get_parameter(name).data = dit.get_parameter(name).data.float()
    dit.gradient_checkpointing = gradient_checkpointing
    with FakeTensorMode(allow_non_fake_inputs=True) as without_data:
        replace_tensors(dit, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        for name, parameter in dit.named_parameters():
            if name in trained:
                parameter.requires_grad_()
                parameter.grad = torch.empty_like(parameter)
    part, num_bytes = _part(config, grid, without_data)
    if copies:
        part, num_bytes = replace(part, control=torch.empty_like(part.latents)), num_bytes + part.latents.nbytes
    state = [*dit.state_dict().values(), *(parameter.grad for parameter in dit.parameters() if parameter.grad is not None)]
    counter = storage_counter({tensor.untyped_storage()._cdata for tensor in state})
    with counter:
        predict = part.predict(dit, torch.bfloat16 if low else torch.float32)
        losses = Diffusion(learned_variance=config.learned_variance).loss(predict, part.latents, part.noise, part.timesteps)
        forward, counter.peak = counter.peak, 0
        losses.total.mean().backward()
    return Activations(forward=forward + num_bytes, backward=counter.peak + num_bytes)


def _part(config: DiTConfig, grid: tuple[int, int], without_data: "AbstractContextManager[object]") -> "tuple[MicroBatch, int]":
    """_MEASURED_IMAGES images and their bytes; one caption is a token shorter, so that there is a mask, as in training."""
    import torch

    from model.dit import Captions
    from trainer.data.batches import MicroBatch

    num, text = _MEASURED_IMAGES, config.conditioning == "text"
    lengths = torch.tensor([config.max_caption_tokens - 1, *[config.max_caption_tokens] * (num - 1)])  # data: it makes shapes
    with without_data:
        latents, noise = (torch.empty(num, config.in_channels, *(side * config.patch_size for side in grid)) for _ in range(2))
        tokens = torch.empty(num * config.max_caption_tokens - 1, config.caption_width, dtype=torch.bfloat16)
        part = MicroBatch(
            latents=latents,
            noise=noise,
            timesteps=torch.empty(num),
            class_labels=None if text else torch.empty(num, dtype=torch.int64),
            sizes=torch.empty(num, 2) if config.micro_conditioning else None,
            aspect_ratios=torch.empty(num, 1) if config.micro_conditioning else None,
        )
    captions = Captions(tokens, lengths) if text else None
    return replace(part, captions=captions), latents.nbytes + noise.nbytes + tokens.nbytes * text
