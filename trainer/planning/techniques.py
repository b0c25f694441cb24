"""Cost of the training techniques that are on: operations, memory and disk, from the configurations alone.

Counted as in model/flops.py: matrix products, attention and convolutions. A projector is trained, so that its backward pass
makes two products for each; a teacher, and the VAE that decodes latents for it, run forward only. Memory assumes that each
technique keeps float32 copies of what its loss reads, and that the teacher's largest activations come on top of the network's.
Projectors see the tokens that their block sees where routing leads others past it; memory is that of images without routing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from model.dit_config import DiTConfig
from model.flops import AdaptationSizes, dit_flops, total
from trainer.config.ladder import Rung
from trainer.config.techniques import STORED, DispersiveConfig, LayerSyncConfig, RepaConfig
from trainer.config.train import TrainConfig
from trainer.planning.encoding import is_t5, t5_bytes, t5_flops

if TYPE_CHECKING:
    from torch import nn

    from model.encoders.vae import VAE

_FLOAT_BYTES = 4
_HALF_BYTES = 2
_STATES = 4
"""Weights, gradients and two moments of a parameter that is trained; it has no average."""
_SAVED_STATES = 3
"""Number of these that a checkpoint holds."""
_NULL_TOKENS = 1
"""Length of the null caption: T5 ends a text without words after one token."""


@dataclass(frozen=True, kw_only=True)
class TechniqueCost:
    """Cost that a technique adds to a resolution step."""

    name: str
    share: float = 1.0
    """Share of the step's images in which it acts."""
    flops_per_image: float = 0.0
    """Operations per image in which it acts, forward and backward."""
    parameters: int = 0
    """Parameters that it trains."""
    frozen_bytes: float = 0.0
    """Weights and largest activations of its frozen models, on each GPU."""
    activations_per_image: float = 0.0
    """Bytes per image of a micro-batch."""
    stored_bytes: float = 0.0
    """Bytes of features per image of the data set."""
    copied_parameters: int = 0
    """Further copies of the network's parameters that are trained, float32, all together."""

    @property
    def mean_flops(self) -> float:
        """Operations per image of the whole step."""
        return self.share * self.flops_per_image

    @property
    def checkpoint_bytes(self) -> float:
        """Bytes in a checkpoint."""
        return _FLOAT_BYTES * (_SAVED_STATES * self.parameters + self.copied_parameters)

    def fixed_bytes(self, *, shared_by: int) -> float:
        """Bytes on a GPU whatever the number of images; weights are sharded over this many GPUs."""
        return _FLOAT_BYTES * (_STATES * self.parameters + self.copied_parameters) / shared_by + self.frozen_bytes


def planned_adaptation(train: TrainConfig, network: DiTConfig) -> AdaptationSizes | None:
    """The sizes of the LoRA or control that is trained; none where all weights are."""
    if train.control.is_on:
        from model.control.control import control_sizes

        return control_sizes(network, train.control.chosen_blocks(network.depth))
    if train.lora.injection is None:
        return None
    from model.lora.injection import lora_sizes

    return lora_sizes(network, train.lora.injection)


def technique_costs(
    train: TrainConfig, rung: Rung, network: DiTConfig, *, stored_width: int = 0, caption_tokens: float | None = None
) -> tuple[TechniqueCost, ...]:
    """The cost of each technique that is on; `stored_width`: channels of a teacher whose features are stored.

    `caption_tokens`: mean length of the captions; default: the longest that the network reads. Raises UserError for a teacher
    or VAE that is unavailable.
    """
    before = sum(other.images_seen for other in train.ladder[: train.ladder.index(rung)])
    return tuple(
        cost
        for cost in (
            _repa(train, rung, network, before=before, stored_width=stored_width) if train.repa.is_on else None,
            _sra2(train, rung, network) if train.sra2.is_on else None,
            _layersync(train.layersync, network) if train.layersync.is_on else None,
            _dispersive(train.dispersive, network) if train.dispersive.is_on else None,
            _few_steps(train, network, caption_tokens=caption_tokens) if train.few_steps.is_on else None,
            _online(network, caption_tokens) if train.online and is_t5(network.caption_width) else None,
        )
        if cost is not None
    )


def _online(network: DiTConfig, caption_tokens: float | None) -> TechniqueCost:
    """Captions that T5-XXL encodes in the training, each time that an image is seen."""
    tokens = network.max_caption_tokens if caption_tokens is None else caption_tokens
    return TechniqueCost(name="online captions", flops_per_image=t5_flops(tokens), frozen_bytes=t5_bytes())


def _share(repa: RepaConfig, rung: Rung, before: int) -> float:
    """The share of a rung's images before REPA stops."""
    left = rung.images_seen if repa.stop_images is None else min(max(0, repa.stop_images - before), rung.images_seen)
    return min(repa.stop_share, left / rung.images_seen)


def _repa(train: TrainConfig, rung: Rung, network: DiTConfig, *, before: int, stored_width: int) -> TechniqueCost:
    repa, share = train.repa, _share(train.repa, rung, before)
    teacher = _FrozenCost(width=stored_width, stored_bytes=_HALF_BYTES * _tokens(network) * stored_width)
    if repa.teacher != STORED:
        teacher = _teacher(repa.teacher or "", repa.revision, train.vae, network)
    widths = repa.projector_widths(network.width, teacher_width=teacher.width)
    seen = _seen_tokens(train, rung, network, block=repa.chosen_block(network.depth), share=share)
    return TechniqueCost(
        name="repa",
        share=share,
        flops_per_image=teacher.flops_per_image + _projector_flops(widths, seen),
        parameters=_projector_parameters(widths),
        frozen_bytes=teacher.num_bytes if share else 0.0,
        activations_per_image=_projector_bytes(widths, network),
        stored_bytes=teacher.stored_bytes,
    )


def _sra2(train: TrainConfig, rung: Rung, network: DiTConfig) -> TechniqueCost:
    widths = train.sra2.projector_widths(network.width, patch_values=network.in_channels * network.patch_size**2)
    seen = _seen_tokens(train, rung, network, block=train.sra2.chosen_block(network.depth), share=1.0)
    return TechniqueCost(
        name="sra2",
        flops_per_image=_projector_flops(widths, seen),
        parameters=_projector_parameters(widths),
        activations_per_image=_projector_bytes(widths, network),
    )


def _layersync(_layersync: LayerSyncConfig, network: DiTConfig) -> TechniqueCost:
    """Cosines alone, which are not counted; both blocks' tokens and their products in float32."""
    return TechniqueCost(name="layersync", activations_per_image=7 * _FLOAT_BYTES * _tokens(network) * network.width)


def _dispersive(dispersive: DispersiveConfig, network: DiTConfig) -> TechniqueCost:
    """A sample's products with its group, forward and twice backward; its tokens, centred and squared, in float32."""
    values = _tokens(network) * network.width
    return TechniqueCost(
        name="dispersive",
        flops_per_image=3 * 2.0 * dispersive.group * values,
        activations_per_image=7 * _FLOAT_BYTES * values,
    )


def _few_steps(train: TrainConfig, network: DiTConfig, *, caption_tokens: float | None) -> TechniqueCost:
    """Forward passes of the teacher, with the caption and with the null caption, and of the target; copies of their weights.

    Activations of passes without gradients are below those of the step.
    """
    few_steps, grid = train.few_steps, (network.base_grid, network.base_grid)
    tokens = network.max_caption_tokens if caption_tokens is None else caption_tokens
    captioned, plain = (total(dit_flops(network, grid=grid, caption_tokens=num)).forward for num in (tokens, _NULL_TOKENS))
    is_consistency = few_steps.method == "consistency"
    num_guided = 1 if is_consistency else few_steps.teacher_steps
    adapted = planned_adaptation(train, network)
    trained = _network_parameters(network) if adapted is None else adapted.num_parameters
    # While a copy is in the network's place, the network's own weights are kept beside it.
    num_copies = (2 if is_consistency else 1) + 1
    return TechniqueCost(
        name="few_steps",
        flops_per_image=num_guided * (captioned + plain) + is_consistency * captioned,
        copied_parameters=num_copies * trained,
    )


@lru_cache
def _network_parameters(network: DiTConfig) -> int:
    import torch

    from model.dit import DiT

    with torch.device("meta"):
        return _num_parameters(DiT(network))


def _tokens(network: DiTConfig) -> int:
    return network.base_grid**2


def _seen_tokens(train: TrainConfig, rung: Rung, network: DiTConfig, *, block: int, share: float) -> float:
    """Tokens that a block sees, on average over a rung's first images, a `share` of them above 0; the first ones are routed."""
    tokens, blocks = _tokens(network), train.routing.blocks
    if blocks is None or not share or not blocks.before < block <= network.depth - blocks.after:
        return tokens
    num_routed = train.routing.routed_images(train.ladder, train.ladder.index(rung), num_tokens=tokens)
    routed = min(1.0, num_routed / (share * rung.images_seen))
    return tokens - routed * (tokens - blocks.num_kept(tokens))


def _projector_flops(widths: Sequence[int], num_tokens: float) -> float:
    return sum(3 * 2.0 * num_tokens * width_in * width_out for width_in, width_out in pairwise(widths))


def _projector_parameters(widths: Sequence[int]) -> int:
    return sum((width_in + 1) * width_out for width_in, width_out in pairwise(widths))


def _projector_bytes(widths: Sequence[int], network: DiTConfig) -> float:
    """Bytes that the layers and SiLU keep, plus the last layer's output, its target and what the loss makes of them; in
    float32."""
    return _FLOAT_BYTES * _tokens(network) * (widths[0] + 2 * sum(widths[1:-1]) + 5 * widths[-1])


@dataclass(frozen=True, kw_only=True)
class _FrozenCost:
    """A teacher with its VAE."""

    width: int
    flops_per_image: float = 0.0
    num_bytes: float = 0.0
    stored_bytes: float = 0.0


@lru_cache
def _teacher(name: str, revision: str | None, vae_name: str | None, network: DiTConfig) -> _FrozenCost:
    import torch

    from model.encoders.teacher import DECODED_PX
    from model.encoders.vision_tower import VisionTowerConfig, empty_vision_tower
    from model.generation.memory import peak_bytes

    tower = empty_vision_tower(VisionTowerConfig(name=name, revision=revision))
    vae = _empty_vae(vae_name, network)
    side, side_px, grid = network.sample_size, network.sample_size * vae.downsampling, (network.base_grid, network.base_grid)
    at_once = max(1, DECODED_PX // side_px**2)
    with torch.no_grad():
        flops = _flops(lambda: vae.model.decode(torch.empty(1, network.in_channels, side, side, device="meta")))
        flops += _flops(lambda: tower.features(torch.empty(1, 3, side_px, side_px, device="meta"), grid))
    decoder = vae.model.bfloat16()
    shape = (at_once, network.in_channels, side, side)
    peak = peak_bytes(decoder, lambda: decoder.decode(torch.empty(shape, dtype=torch.bfloat16)))
    weights = 2 * (_num_parameters(decoder) + _num_parameters(tower.model))
    return _FrozenCost(width=tower.width, flops_per_image=flops, num_bytes=weights + peak)


def _empty_vae(name: str | None, network: DiTConfig) -> "VAE":
    """The VAE of this name, or one of Stable Diffusion's sizes, as PixArt's is, without weights."""
    import torch
    from diffusers import AutoencoderKL

    from model.encoders.vae import VAE, VAEConfig, empty_vae
    from model.generation.memory import STABLE_DIFFUSION_VAE

    if name is not None:
        return empty_vae(VAEConfig(name=name))
    with torch.device("meta"):
        return VAE(AutoencoderKL.from_config({**STABLE_DIFFUSION_VAE, "latent_channels": network.in_channels}).eval())


def _num_parameters(module: "nn.Module") -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _flops(call: Callable[[], object]) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())
