"""A text DiT that starts from a class-conditional one computes the same at t = 500, for every choice of the shared MLP."""

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from model.dit import DiT
from model.initialisation import InitialisationConfig, initialise_from_class_dit
from tests.model.tiny_networks import CLASS, RATIOS, SIZES, TEXT, captions, latents, random_network


def _start(source: DiT, shared: Literal["mean"] | int, **changes: Any) -> DiT:
    target = DiT(replace(TEXT, **changes))
    config = InitialisationConfig(shared_mlp=shared)
    return initialise_from_class_dit(target, source, generator=torch.Generator().manual_seed(0), config=config)


@pytest.mark.parametrize("null_class", [True, False])
@pytest.mark.parametrize("shared", ["mean", 0, 2])
def test_every_modulation_equals_the_sources_at_500(null_class: bool, shared: Literal["mean"] | int) -> None:
    source = random_network(CLASS, null_class=null_class)
    target = _start(source, shared)
    timestep = torch.tensor([500.0])
    own: Any = source
    new: Any = target
    condition = own.t_embedder(timestep)
    if null_class:
        condition = condition + own.y_embedder.embedding_table.weight[-1]
    embedded = new.t_embedder(timestep)
    modulation = new.t_block(embedded).view(6, -1)
    for old_block, new_block in zip(own.blocks, new.blocks, strict=True):
        expected = old_block.adaLN_modulation(condition).view(6, -1)
        torch.testing.assert_close(modulation + new_block.scale_shift_table, expected, rtol=1e-6, atol=1e-6)
    expected = own.final_layer.adaLN_modulation(condition).view(2, -1)
    torch.testing.assert_close(embedded + new.final_layer.scale_shift_table, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"micro_conditioning": True}, {"learned_variance": False}])
def test_the_output_at_500_is_the_sources_without_a_class(changes: dict[str, Any]) -> None:
    source = random_network(CLASS)
    target = _start(source, "mean", **changes)
    timesteps = torch.full((3,), 500.0)
    micro = {"sizes": SIZES, "aspect_ratios": RATIOS} if target.config.micro_conditioning else {}
    output = target(latents(), timesteps, captions=captions(), **micro)
    expected = source(latents(), timesteps)[:, : target.config.out_channels]
    assert float((output - expected).abs().max() / expected.abs().max()) < 1e-5


def test_a_blocks_own_mlp_keeps_that_block_at_every_timestep() -> None:
    source = random_network(CLASS)
    new: Any = _start(source, 1)
    own: Any = source
    for timestep in (torch.tensor([3.0]), torch.tensor([900.0])):
        condition = own.t_embedder(timestep) + own.y_embedder.embedding_table.weight[-1]
        expected = own.blocks[1].adaLN_modulation(condition).view(6, -1)
        found = new.t_block(new.t_embedder(timestep)).view(6, -1) + new.blocks[1].scale_shift_table
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_networks_that_do_not_fit_are_named() -> None:
    source = random_network(CLASS)
    with pytest.raises(ValueError, match="same sizes, found depth 3 and 2"):
        _start(source, "mean", depth=2)
    with pytest.raises(ValueError, match="shared_mlp: expected mean or 0 to 2, found 3"):
        _start(source, 3)
    with pytest.raises(ValueError, match="expected a text DiT from a class DiT, found text from text"):
        _start(random_network(), "mean")
