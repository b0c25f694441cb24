"""Weights of few bits: what rounding costs is bounded, the rest is the layer, and adapters are added before they round."""

import pytest
import torch
from torch import nn

from model.layers.int4 import GROUP, Int4Linear
from model.layers.int8 import Int8Linear
from model.layers.matrices import block_matrices
from model.layers.quantised import WeightFormat, holds_quantised, put_weight, quantise_blocks
from tests.model.tiny_networks import CLASS, TEXT, TIMESTEPS, captions, latents, random_network


def linear(inputs: int, outputs: int = 40, *, bias: bool = True, seed: int = 0) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


@pytest.mark.parametrize("inputs", [GROUP, 3 * GROUP, 50, 70, 1])
def test_each_weight_of_4_bits_is_off_by_half_a_step_at_most(inputs: int) -> None:
    layer = linear(inputs)
    with torch.no_grad():
        layer.weight[3] = 0
        layer.weight[4] = 2.5
        small = Int4Linear(layer)
        found = small.expanded(torch.float32)
        error = (found - layer.weight).abs()
        assert found.shape == layer.weight.shape
        for group in range(0, inputs, GROUP):
            own = layer.weight[:, group : group + GROUP]
            own = torch.cat([own, own.new_zeros(len(own), 1)], dim=1) if inputs % GROUP else own
            step = (own.amax(1) - own.amin(1)) / 15
            assert bool((error[:, group : group + GROUP] <= step[:, None] / 2 + 1e-5).all())
        assert not error[3].any() and error[4].max() <= 2.5 / 30 + 1e-6
        x = torch.randn(2, 5, inputs, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(small(x), nn.functional.linear(x, found, layer.bias))
        assert small(x.bfloat16()).dtype == torch.bfloat16
    stored = sum(tensor.numel() * tensor.element_size() for name, tensor in small.state_dict().items() if name != "bias")
    assert stored == 40 * -(-inputs // GROUP) * (GROUP // 2 + 8)


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
def test_a_stored_weight_is_that_of_a_new_layer(kind: type[Int8Linear] | type[Int4Linear]) -> None:
    small, other = kind(linear(70, bias=False)), linear(70, bias=False, seed=2)
    small.store(other.weight.detach())
    expected, x = kind(other), torch.randn(3, 70)
    assert torch.equal(small(x), expected(x))


@pytest.mark.parametrize(("weights", "worst"), [("int8", 0.03), ("int4", 0.4)])
@pytest.mark.parametrize("config", [TEXT, CLASS], ids=["text", "class"])
def test_a_network_of_few_bits_predicts_nearly_the_same(config: object, *, weights: WeightFormat, worst: float) -> None:
    whole, small = random_network(config), random_network(config)  # type: ignore[arg-type]
    quantise_blocks(small, weights)
    assert holds_quantised(small) and not holds_quantised(whole)
    assert not block_matrices(small)  # none of them is left
    inputs = {"captions": captions()} if config is TEXT else {}
    with torch.no_grad():
        expected, found = (network(latents(), TIMESTEPS, **inputs) for network in (whole, small))
    assert 0 < float((found - expected).norm() / expected.norm()) < worst


def test_a_weight_is_put_into_any_layer() -> None:
    for weights in (None, "int8", "int4"):
        network, name = random_network(TEXT), "blocks.0.attn.qkv"
        if weights is not None:
            quantise_blocks(network, weights)
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Linear | Int4Linear)
        weight = torch.full((layer.out_features, layer.in_features), 0.5)
        put_weight(network, name, weight)
        x = torch.ones(1, layer.in_features)
        bias = torch.zeros(()) if layer.bias is None else layer.bias
        with torch.no_grad():
            torch.testing.assert_close(
                layer(x) - bias, torch.full((1, layer.out_features), 0.5 * layer.in_features), rtol=1e-3, atol=1e-3
            )
