"""A text-conditional DiT that starts as a class-conditional one: the paper's re-parameterised initialisation.

What both have is copied. adaLN-single gets one shared MLP, and the table E(i) of block i makes up the difference: at t = 500,
without a class, S + E(i) equals block i's own adaLN, and the final layer's modulation equals its own. Cross-attention starts at
zero. So at t = 500 the new network computes what the old one computes for the null class.

Source: PixArt-alpha, section 2.3. The paper does not say which MLP becomes the shared one; docs/lab_log.md has our measurement.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from model.dit import DiT

TIMESTEP = 500.0
_SAME = ("width", "depth", "num_heads", "patch_size", "in_channels", "mlp_ratio")


@dataclass(frozen=True)
class InitialisationConfig:
    """Settings of the re-parameterised start: a text-conditional DiT from a class-conditional one."""

    shared_mlp: Literal["mean"] | int = "mean"
    """Shared MLP: the mean of all blocks' (the closest to all of them at every timestep), or that of the block given."""


def initialise_from_class_dit(
    target: "DiT", source: "DiT", *, generator: "torch.Generator", config: InitialisationConfig | None = None
) -> "DiT":
    """Fills `target` (text) from `source` (class), both float32 on one device, and returns it. Deterministic.

    A learned null class joins the bias of the time embedding, so that the time embedding is the source's without a class at
    every timestep; where there is none, nothing joins it. `generator` draws what the source has not: the caption projection,
    cross-attention. Raises ValueError if the two networks differ in more than their conditioning.
    """
    import torch

    settings = config or InitialisationConfig()
    _check(target, source, settings)
    target.initialise(generator)
    with torch.no_grad():
        _copy_common(target, source)
        for embedder in ("csize_embedder", "ar_embedder"):
            if target.config.micro_conditioning:  # sizes change nothing at first
                last = getattr(target, embedder).mlp[2]
                last.weight.zero_()
                last.bias.zero_()
        blocks: list[Any] = list(source.blocks)
        mlps = [block.adaLN_modulation[1] for block in blocks]
        chosen = mlps if settings.shared_mlp == "mean" else [mlps[settings.shared_mlp]]
        shared: Any = target.t_block[1]
        shared.weight.copy_(torch.stack([mlp.weight for mlp in chosen]).mean(0))
        shared.bias.copy_(torch.stack([mlp.bias for mlp in chosen]).mean(0))
        _fit_tables(target, source)
    return target


def _check(target: "DiT", source: "DiT", settings: InitialisationConfig) -> None:
    kinds = (source.config.conditioning, target.config.conditioning)
    if kinds != ("class", "text"):
        raise ValueError(f"initialisation: expected a text DiT from a class DiT, found {kinds[1]} from {kinds[0]}")
    pairs = {name: (getattr(source.config, name), getattr(target.config, name)) for name in _SAME}
    if differing := [f"{name} {old} and {new}" for name, (old, new) in pairs.items() if old != new]:
        raise ValueError(f"initialisation: expected networks of the same sizes, found {', '.join(differing)}")
    if target.config.learned_variance and not source.config.learned_variance:
        raise ValueError("initialisation: expected a source with learned_variance for a target with it, found one without")
    if settings.shared_mlp != "mean" and not 0 <= settings.shared_mlp < source.config.depth:
        raise ValueError(f"shared_mlp: expected mean or 0 to {source.config.depth - 1}, found {settings.shared_mlp}")


def _copy_common(target: "DiT", source: "DiT") -> None:
    """Patches, time embedding with the null class, self-attention, MLPs, the last linear layer."""
    state, old = target.state_dict(), source.state_dict()
    parts = ("x_embedder.", "t_embedder.")
    for name, tensor in old.items():
        if name.startswith(parts) or (name in state and (".attn." in name or ".mlp." in name)):
            state[name].copy_(tensor)
    if source.config.null_class:
        state["t_embedder.mlp.2.bias"].add_(old["y_embedder.embedding_table.weight"][-1])
    for kind in ("weight", "bias"):  # rows are (p, p, channels); the prediction's channels come before the variance's
        name = f"final_layer.linear.{kind}"
        patches = source.config.patch_size**2
        rows = old[name].unflatten(0, (patches, -1))[:, : target.config.out_channels]
        state[name].copy_(rows.flatten(0, 1))


def _fit_tables(target: "DiT", source: "DiT") -> None:
    """E(i) = block i's own modulation - S, and the same for the final layer's table, at t = 500 and computed in float64."""
    import copy

    import torch

    timestep = torch.full((1,), TIMESTEP, device=next(source.parameters()).device)
    condition = copy.deepcopy(target.t_embedder).double()(timestep)  # (1, D): the null class is in it
    shared = copy.deepcopy(target.t_block).double()(condition)  # (1, 6 D)
    pairs: list[Any] = list(zip(target.blocks, source.blocks, strict=True))
    for new, old in pairs:
        own = copy.deepcopy(old.adaLN_modulation).double()(condition)  # (1, 6 D)
        new.scale_shift_table.copy_((own - shared).view(6, -1))
    final = copy.deepcopy(source.final_layer.adaLN_modulation).double()(condition).view(2, -1)  # (2, D)
    target.final_layer.scale_shift_table.copy_(final - condition)
