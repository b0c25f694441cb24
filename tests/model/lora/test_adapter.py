"""Adapters: what peft computes in a network is what we add to its weights; files lose nothing; 8 bits cost rounding alone."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from foundry.errors import UserError
from model.dit import DiT
from model.layers.int8 import Int8Linear
from model.lora.adapter import Adapter, LayerAdapter, ScaledAdapter, with_adapters
from model.lora.file import is_adapter_file, read_adapter, read_header, write_adapter
from model.lora.injection import base_weights, inject, lora_sizes, target_layers, trained_layers
from model.lora.settings import Injection, LoraChoice, parse_choices
from tests.model.tiny_networks import CLASS, TEXT, TIMESTEPS, captions, latents, random_network

KINDS = [
    Injection(rank=4, alpha=6.0),
    Injection(rank=4, alpha=6.0, rslora=True),
    Injection(rank=3, alpha=2.0, dora=True),
    Injection(rank=4, alpha=6.0, base="int8"),
    Injection(rank=2, alpha=2.0, dora=True, base="int8"),
    Injection(rank=2, alpha=2.0, targets=("attn.qkv", "t_block.1", "final_layer.linear", "y_proj.fc1")),
]


def adapted_network(injection: Injection, *, seed: int = 0) -> DiT:
    """A network with an adapter that is trained already: its values are random."""
    network = random_network(TEXT, seed=seed)
    inject(network, injection, seed=1)
    generator = torch.Generator().manual_seed(3 + seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return network


def adapter_of(network: DiT, injection: Injection) -> Adapter:
    layers = {name: _copied(layer) for name, layer in trained_layers(network.state_dict(), injection).items()}
    return Adapter(layers=layers, rslora=injection.rslora, base="mini", base_fingerprint="abc", trigger_word="sks")


def _copied(layer: LayerAdapter) -> LayerAdapter:
    magnitude = None if layer.magnitude is None else layer.magnitude.clone()
    return LayerAdapter(down=layer.down.clone(), up=layer.up.clone(), alpha=layer.alpha, magnitude=magnitude)


def _predicted(network: DiT) -> torch.Tensor:
    with torch.no_grad():
        return network(latents(), TIMESTEPS, captions=captions())  # type: ignore[no-any-return]


@pytest.mark.parametrize("injection", KINDS, ids=str)
def test_a_new_adapter_changes_nothing_and_a_trained_one_is_a_change_of_weights(injection: Injection) -> None:
    plain = random_network(TEXT)
    fresh = random_network(TEXT)
    inject(fresh, injection, seed=1)
    rounding = 0.01 if injection.base == "int8" else 1e-6
    torch.testing.assert_close(_predicted(fresh), _predicted(plain), atol=rounding, rtol=rounding)
    network = adapted_network(injection)
    adapter = adapter_of(network, injection)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert adapter.num_parameters == lora_sizes(TEXT, injection).num_parameters
    weights = base_weights(network.state_dict())
    assert weights.keys() == plain.state_dict().keys()
    plain.load_state_dict(with_adapters(weights, [ScaledAdapter(adapter=adapter, source="it")]))
    expected = _predicted(network)
    assert float((expected - _predicted(fresh)).abs().max()) > 0.01
    torch.testing.assert_close(_predicted(plain), expected, atol=5e-6, rtol=1e-5)


def test_adapters_add_up_with_their_scales() -> None:
    first, second = KINDS[0], KINDS[2]
    adapters = [adapter_of(adapted_network(one, seed=seed), one) for seed, one in enumerate((first, second))]
    state = random_network(TEXT).state_dict()
    both = [ScaledAdapter(adapter=one, scale=scale, source="it") for one, scale in zip(adapters, (0.5, -2.0), strict=True)]
    found = with_adapters(state, both, dtype=torch.float64)
    name = "blocks.1.attn.qkv"
    weight = state[f"{name}.weight"].double()
    layer = adapters[0].layers[name]
    change = 0.5 * (6.0 / 4) * layer.up.double() @ layer.down.double()
    layer = adapters[1].layers[name]
    assert layer.magnitude is not None
    whole = weight + (2.0 / 3) * layer.up.double() @ layer.down.double()
    directed = layer.magnitude.double()[:, None] * whole / whole.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found[f"{name}.weight"], weight + change - 2.0 * (directed - weight))
    none = with_adapters(state, [ScaledAdapter(adapter=one, scale=0.0, source="it") for one in adapters])
    assert all(torch.equal(none[key], tensor) for key, tensor in state.items())


def test_an_adapter_of_another_network_is_refused_by_name() -> None:
    adapter = ScaledAdapter(adapter=adapter_of(adapted_network(KINDS[0]), KINDS[0]), source="the.safetensors")
    for other, words in [(random_network(CLASS), "no such layer"), (random_network(TEXT, width=24), "72 x 24")]:
        with pytest.raises(UserError, match=rf"the.safetensors is a LoRA of another network: it adapts blocks.*{words}"):
            with_adapters(other.state_dict(), [adapter])


def test_a_file_holds_the_adapter_and_says_in_its_header_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    for injection in KINDS[:3]:
        adapter = adapter_of(adapted_network(injection), injection)
        write_adapter(path, adapter)
        found = read_adapter(path)
        assert found.fingerprint() == adapter.fingerprint() and found.trigger_word == "sks" and found.base == "mini"
        assert {name: found.scaling(name) for name in found.layers} == {name: adapter.scaling(name) for name in adapter.layers}
        for name, layer in adapter.layers.items():
            expected = dict(layer.tensors())
            assert all(torch.equal(tensor, expected[part]) for part, tensor in found.layers[name].tensors())
    header = read_header(path)
    assert (header["rank"], header["alpha"], header["dora"], header["base_fingerprint"]) == ("3", "2", "true", "abc")
    assert is_adapter_file(path) and path.stat().st_size < 100_000


def test_a_damaged_file_is_refused_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    write_adapter(path, adapter_of(adapted_network(KINDS[0]), KINDS[0]))
    header = dict(read_header(path))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="truncated or not safetensors"):
        read_adapter(path)
    save_file({"blocks.0.attn.qkv.lora_A.weight": torch.zeros(2, 3)}, path, metadata=header)
    with pytest.raises(UserError, match="lacks blocks.0.attn.qkv.lora_B.weight"):
        read_adapter(path)
    save_file({"x": torch.zeros(2)}, path)
    assert not is_adapter_file(path)
    with pytest.raises(UserError, match="expected a header of kind t2i-foundry lora, version 1, found none, version none"):
        read_adapter(path)


def test_targets_are_the_ends_of_names_and_others_are_refused_with_those_that_there_are() -> None:
    network = random_network(TEXT, text_adapter_blocks=1)
    default = target_layers(network, ())
    assert len(default) == 7 * 3 + 5 and "text_adapter.0.mlp.gate" in default and "t_block.1" not in default
    assert target_layers(network, ("cross_attn.proj",)) == tuple(f"blocks.{index}.cross_attn.proj" for index in range(3))
    assert "text_adapter.0.attn.proj" in target_layers(network, ("attn.proj",))
    with pytest.raises(UserError, match=r"no linear layer atn.qkv: .* attn.qkv, .*final_layer.linear") as error:
        target_layers(network, ("attn.qkv", "atn.qkv"))
    assert error.value.setting == "lora.targets"


def test_the_start_of_an_adapter_depends_on_its_seed_alone() -> None:
    starts = []
    for seed, drawn in ((1, 0), (1, 5), (2, 0)):
        torch.manual_seed(drawn)
        network = random_network(TEXT)
        inject(network, KINDS[0], seed=seed)
        starts.append(network.state_dict()["blocks.0.mlp.fc1.lora_A.default.weight"])
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_in_eight_bits_has_the_gradient_of_its_weight_and_keeps_no_copy_of_it(dtype: torch.dtype) -> None:
    linear = torch.nn.Linear(48, 32)
    small = Int8Linear(linear)
    assert float((small.weight - linear.weight).detach().abs().max()) <= float(small.scale.max()) / 2 + 1e-7
    x, weight = torch.randn(5, 48, dtype=dtype, requires_grad=True), torch.randn(5, 32, dtype=dtype)
    saved: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = small(x)
    assert sum(size for size in saved if size > 32 * 4) <= 48 * 32 + 5 * 32 * 4  # the codes, and what the scale multiplies
    (output * weight).sum().backward()
    expected = torch.nn.functional.linear(x.detach().float(), small.weight, linear.bias)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(output.float(), expected, atol=tolerance, rtol=tolerance)
    assert x.grad is not None and x.grad.dtype == dtype
    torch.testing.assert_close(x.grad.float(), weight.float() @ small.weight, atol=tolerance * 4, rtol=tolerance)
    assert not any(parameter.requires_grad for parameter in small.parameters())


def test_choices_are_paths_with_scales() -> None:
    assert LoraChoice.parse("runs/dog:0.5") == LoraChoice("runs/dog", 0.5)
    assert LoraChoice.parse("runs/dog") == LoraChoice("runs/dog", 1.0) == LoraChoice.parse("runs/dog:1")
    assert LoraChoice.parse("a:b/c") == LoraChoice("a:b/c", 1.0)
    for text, words in [("dog:big", "big is not a number"), (":1", "expected PATH or PATH:SCALE"), ("dog:nan", "finite scale")]:
        with pytest.raises(ValueError, match=words):
            LoraChoice.parse(text)
    with pytest.raises(ValueError, match="dog is given twice"):
        parse_choices(["dog:0.5", "dog"])
