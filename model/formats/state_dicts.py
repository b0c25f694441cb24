"""One network, two sets of names: the official checkpoints' (ours too) and diffusers'.

Fused projections are three or two of diffusers' in a row; its DiTTransformer2DModel has a copy of the embedders in each block.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from foundry.errors import UserError
from model.dit_config import DiTConfig

StateDict = dict[str, Tensor]

_TEXT = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "adaln_single.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2",
    "t_block.1": "adaln_single.linear",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "final_layer.linear": "proj_out",
}
_MICRO = {
    f"{ours}.mlp.{layer}": f"adaln_single.emb.{theirs}.linear_{number}"
    for ours, theirs in (("csize_embedder", "resolution_embedder"), ("ar_embedder", "aspect_ratio_embedder"))
    for layer, number in ((0, 1), (2, 2))
}
_CLASS = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.linear": "proj_out_2",
    "final_layer.adaLN_modulation.1": "proj_out_1",
}
_CLASS_COPIES = {
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
}
_BLOCK = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
}
_TEXT_BLOCK = _BLOCK | {
    "cross_attn.q_linear": ("attn2.to_q",),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
    "cross_attn.proj": ("attn2.to_out.0",),
}
_CLASS_BLOCK = _BLOCK | {"adaLN_modulation.1": ("norm1.linear",)}


@dataclass(frozen=True)
class Names:
    """Names in diffusers of one of our parameters."""

    theirs: tuple[str, ...]
    """One name; or several, for parts along the first dimension or for copies."""
    copies: bool = False
    """Whether the several names hold the same values."""


def diffusers_names(config: DiTConfig) -> dict[str, Names]:
    """Our name of each parameter that diffusers has, and its name there. Raises UserError for what diffusers cannot hold."""
    foreign = {
        "qk_norm": config.qk_norm,
        "kv_compression": config.kv_compression.layers,
        "text adapter": config.text_adapter_blocks,
    }
    if found := next((name for name, is_there in foreign.items() if is_there), ""):
        raise UserError(
            f"diffusers' PixArtTransformer2DModel has no {found}: expected a network without; write an official file",
            setting="target",
        )
    blocks = [f"transformer_blocks.{index}" for index in range(config.depth)]
    text = config.conditioning == "text"
    linear = _TEXT | (_MICRO if config.micro_conditioning else {}) if text else _CLASS
    names = {f"{ours}.{kind}": Names((f"{theirs}.{kind}",)) for ours, theirs in linear.items() for kind in ("weight", "bias")}
    for index, block in enumerate(blocks):
        for ours, parts in (_TEXT_BLOCK if text else _CLASS_BLOCK).items():
            for kind in ("weight", "bias"):
                names[f"blocks.{index}.{ours}.{kind}"] = Names(tuple(f"{block}.{part}.{kind}" for part in parts))
        if text:
            names[f"blocks.{index}.scale_shift_table"] = Names((f"{block}.scale_shift_table",))
    if text:
        return names | {"final_layer.scale_shift_table": Names(("scale_shift_table",))}
    for ours, copy in _CLASS_COPIES.items():
        for kind in ("weight", "bias"):
            names[f"{ours}.{kind}"] = Names(tuple(f"{block}.norm1.emb.{copy}.{kind}" for block in blocks), copies=True)
    table = tuple(f"{block}.norm1.emb.class_embedder.embedding_table.weight" for block in blocks)
    return names | {"y_embedder.embedding_table.weight": Names(table, copies=True)}


def to_diffusers(state: Mapping[str, Tensor], config: DiTConfig) -> StateDict:
    """Our parameters under diffusers' names; what diffusers has no place for (`y_embedding`) stays behind."""
    result: StateDict = {}
    for ours, names in diffusers_names(config).items():
        parts = [state[ours]] * len(names.theirs) if names.copies else state[ours].chunk(len(names.theirs))
        result |= {theirs: part.clone() for theirs, part in zip(names.theirs, parts, strict=True)}
    return result


def from_diffusers(state: Mapping[str, Tensor], config: DiTConfig) -> StateDict:
    """diffusers' parameters under our names. All names of `diffusers_names` are there: compare before.

    Raises UserError if copies that our network has once differ.
    """
    result: StateDict = {}
    for ours, names in diffusers_names(config).items():
        parts = [state[theirs] for theirs in names.theirs]
        if names.copies:
            for theirs, part in zip(names.theirs, parts, strict=True):
                if not torch.equal(part, parts[0]):
                    raise UserError(
                        f"{theirs} differs from {names.theirs[0]}: expected one time and one label embedder, copied into each "
                        "block, as in DiT; found blocks that were trained apart, which this network cannot hold"
                    )
        result[ours] = parts[0] if names.copies or len(parts) == 1 else torch.cat(parts)
    return result
