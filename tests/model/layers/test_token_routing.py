"""Token routing: what passes by is unchanged, what is routed is computed alone, and the masked loss counts the kept tokens."""

from dataclasses import replace

import pytest
import torch

from model.diffusion import Diffusion, Objective, RectifiedFlow
from model.dit import HiddenStates, KVCompression
from model.dit_config import RoutedBlocks
from model.flops import dit_flops, total
from model.layers.token_routing import TokenRoute
from tests.model.tiny_networks import CLASS, TEXT, TIMESTEPS, captions, latents, random_network
from trainer.data.noise import sample_noise, token_ranks

DEEP = replace(TEXT, depth=5)
BLOCKS = RoutedBlocks(share=0.5, before=2, after=2)
GRID = (4, 6)
"""Of the latents 8 x 12."""


def _route(blocks: RoutedBlocks = BLOCKS, *, num: int = 3) -> TokenRoute:
    return TokenRoute.by_rank(token_ranks(24, seed=0, positions=range(num)), blocks)


def test_the_routed_blocks_see_the_kept_tokens_and_the_others_pass_them_by() -> None:
    network = random_network(DEEP)
    route, hidden = _route(), HiddenStates(frozenset({2, 3}))
    inputs: list[torch.Tensor] = []
    for index in (2, 3):
        network.blocks[index].register_forward_pre_hook(lambda _block, given: inputs.append(given[0]))
    network(latents(), TIMESTEPS, captions=captions(), hidden=hidden, route=route)
    before, behind = hidden.outputs[2], hidden.outputs[3]
    assert before.shape[1] == 24 and behind.shape[1] == 12 == inputs[0].shape[1]
    rows = torch.arange(3)[:, None]
    assert torch.equal(inputs[0], before[rows, route.kept]) and torch.equal(inputs[1][rows, route.kept], behind)
    passed = torch.ones(3, 24, dtype=torch.bool).scatter(1, route.kept, value=False)
    assert torch.equal(inputs[1][passed], before[passed])


def test_keeping_all_tokens_changes_nothing_and_a_class_network_routes_too() -> None:
    whole = RoutedBlocks(share=1e-9, before=2, after=2)
    network = random_network(DEEP)
    expected = network(latents(), TIMESTEPS, captions=captions())
    assert torch.equal(network(latents(), TIMESTEPS, captions=captions(), route=_route(whole)), expected)
    by_class = random_network(replace(CLASS, depth=5))
    assert not torch.equal(by_class(latents(), TIMESTEPS, route=_route()), by_class(latents(), TIMESTEPS))
    network.gradient_checkpointing = True
    network(latents(), TIMESTEPS, captions=captions(), route=_route()).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_sample_alone_equals_the_sample_in_its_batch() -> None:
    network, route = random_network(DEEP).double(), _route()
    together = network(latents().double(), TIMESTEPS, captions=captions().to(dtype=torch.float64), route=route)
    for index in range(3):
        own = TokenRoute(route.kept[index, None], BLOCKS)
        read = captions().select([index]).to(dtype=torch.float64)
        alone = network(latents().double()[index, None], TIMESTEPS[index, None], captions=read, route=own)
        torch.testing.assert_close(alone[0], together[index], rtol=1e-9, atol=1e-9)


def test_routes_depend_on_seed_and_position_alone_and_leave_the_noise_as_it_is() -> None:
    before = sample_noise((4, 8, 12), seed=7, positions=[5, 9])
    together, alone = token_ranks(24, seed=7, positions=[5, 9]), token_ranks(24, seed=7, positions=[9])
    assert torch.equal(together[1:], alone) and not torch.equal(together[0], together[1])
    assert not torch.equal(alone, token_ranks(24, seed=8, positions=[9]))
    assert torch.equal(sample_noise((4, 8, 12), seed=7, positions=[5, 9]).noise, before.noise)
    quantiles = before.quantiles.double()
    assert not torch.isclose(together[:, :1], quantiles[:, None], atol=1e-6).any()  # a separate stream
    kept = TokenRoute.by_rank(token_ranks(24, seed=0, positions=range(4000)), BLOCKS).kept
    counts = kept.flatten().bincount(minlength=24) / 4000
    assert bool(((counts - 0.5).abs() < 0.05).all())  # six standard deviations


@pytest.mark.parametrize("objective", [Diffusion(), RectifiedFlow()], ids=["diffusion", "flow"])
def test_the_masked_loss_counts_the_kept_tokens_alone(objective: Objective) -> None:
    masking = RoutedBlocks(share=0.75, before=2, after=0)
    network = random_network(DEEP, learned_variance=isinstance(objective, Diffusion))
    route, noise = _route(masking), torch.randn(3, 4, 8, 12, generator=torch.Generator().manual_seed(3))
    mask = route.loss_mask(GRID, 2)
    assert mask.shape == (3, 1, 8, 12) and float(mask.mean()) == 0.25
    patches = torch.nn.functional.max_pool2d(mask, 2).flatten(1)
    assert [row.nonzero().flatten().tolist() for row in patches] == route.kept.tolist()

    def loss(target: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        def predict(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            assert noisy.shape == latents().shape
            output: torch.Tensor = network(fixed, timesteps, captions=captions(), route=route)
            return output

        return objective.loss(predict, latents(), target, TIMESTEPS.floor(), **options).total

    fixed = objective.add_noise(latents(), noise, TIMESTEPS.floor())
    if isinstance(objective, RectifiedFlow):
        elsewhere = torch.where(mask.bool(), noise, noise + 5)
        torch.testing.assert_close(loss(elsewhere, mask=mask), loss(noise, mask=mask))
    assert not torch.allclose(loss(noise, mask=mask), loss(noise))
    torch.testing.assert_close(loss(noise, mask=torch.ones_like(mask)), loss(noise), rtol=1e-5, atol=1e-6)
    loss(noise, mask=mask).sum().backward()
    table = network.final_layer.linear.weight.grad
    assert table is not None and bool(table.any())


def test_operations_are_those_of_the_tokens_that_are_seen() -> None:
    def operations(depth: int, grid: tuple[int, int]) -> float:
        return total(dit_flops(replace(DEEP, depth=depth), grid=grid, caption_tokens=7)).training

    routed = total(dit_flops(DEEP, grid=GRID, caption_tokens=7, routed=BLOCKS)).training
    of_one_block = operations(2, (3, 4)) - operations(1, (3, 4))  # with half of the tokens
    assert routed == pytest.approx(operations(4, GRID) + of_one_block)


def test_what_cannot_be_routed_is_named() -> None:
    for config, words in [(TEXT, "found a depth of 3"), (replace(DEEP, kv_compression=KVCompression((4,))), "kv_compression")]:
        with pytest.raises(ValueError, match=f"routing: .*{words}"):
            random_network(config)(latents(), TIMESTEPS, captions=captions(), route=_route())
    with pytest.raises(ValueError, match="route: expected tokens of 3 samples, found 2"):
        random_network(DEEP)(latents(), TIMESTEPS, captions=captions(), route=_route(num=2))
