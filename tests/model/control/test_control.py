"""A control starts as nothing, is trained alone, follows its image as the formula says, and is kept in a file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from foundry.errors import UserError
from model.control.control import Control, add_copies, check_fits, control_sizes, put_control, trained_tensors
from model.control.edges import edge_map
from model.control.file import read_control, write_control
from model.control.settings import EDGES, ControlChoice, default_blocks
from model.dit import DiT
from model.dit_config import RoutedBlocks
from model.layers.token_routing import TokenRoute
from model.lora.adapter import Adapter, LayerAdapter
from model.lora.file import write_adapter
from tests.model.tiny_networks import CLASS, RATIOS, SIZES, TEXT, TIMESTEPS, captions, latents, random_network

CONTROL = torch.randn(3, 4, 8, 12, generator=torch.Generator().manual_seed(7))


def random_control(network: DiT, num: int = 2, *, seed: int = 3) -> Control:
    """A control of a network with random weights everywhere."""
    add_copies(network, num)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.control_blocks.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return Control(tensors={name: tensor.detach().clone() for name, tensor in trained_tensors(network.state_dict()).items()})


def run(network: DiT, control: Tensor | None = None) -> Tensor:
    """The prediction for the inputs that all tests share."""
    return network(latents(), TIMESTEPS, captions=captions(), control=control)  # type: ignore[no-any-return]


def test_a_new_control_changes_nothing_and_copies_the_first_blocks() -> None:
    network = random_network()
    plain = run(network)
    add_copies(network, 2)
    assert torch.equal(run(network, CONTROL), plain) and torch.equal(run(network), plain)
    for index, copy in enumerate(network.control_blocks):
        own = network.blocks[index].state_dict()
        assert all(torch.equal(tensor, own[name]) for name, tensor in copy.get_submodule("block").state_dict().items())
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert trained and all(name.startswith("control_blocks.") for name in trained)


def test_what_the_copies_add_is_what_the_formula_says() -> None:
    """Written down once more, in one pass over the blocks of the network and its control."""
    network = random_network(depth=4)
    random_control(network)
    network.control_scale = 0.7
    found = run(network, CONTROL)
    blocks: Any = network.blocks
    with torch.no_grad():
        grid = (4, 6)
        position = network._position(grid, torch.device("cpu"))
        condition = network.t_embedder(TIMESTEPS)
        shared, text = network.t_block(condition).unflatten(1, (6, -1)), network._project(captions())
        x = blocks[0](network.x_embedder(latents()) + position, shared, text, grid)
        copies: Any = network.control_blocks
        first, second = copies
        states = x + first.before(network.x_embedder(CONTROL) + position)
        states = first.block(states, shared, text, grid)
        x = blocks[1](x + 0.7 * first.after(states), shared, text, grid)
        states = second.block(states, shared, text, grid)
        x = blocks[2](x + 0.7 * second.after(states), shared, text, grid)
        x = blocks[3](x, shared, text, grid)
        expected = network._unpatchify(network.final_layer(x, condition), grid)
    torch.testing.assert_close(found, expected)
    assert (found - run(network)).abs().max() > 0.01


def test_prepared_captions_a_scale_of_0_and_each_sample_alone_are_the_same() -> None:
    network = random_network()
    random_control(network)
    whole = run(network, CONTROL)
    prepared = network.prepare(captions())
    assert torch.allclose(network(latents(), TIMESTEPS, captions=prepared, control=CONTROL), whole, atol=1e-5)
    lone = network(latents()[1:2], TIMESTEPS[1:2], captions=captions().select([1]), control=CONTROL[1:2])
    assert torch.allclose(lone, whole[1:2], atol=1e-5)
    network.control_scale = 0.0
    assert torch.allclose(run(network, CONTROL), run(network), atol=1e-6)


def test_gradients_are_the_controls_alone_and_the_same_recomputed() -> None:
    network = random_network()
    random_control(network)
    gradients = []
    for recomputes in (False, True):
        network.gradient_checkpointing = recomputes
        network.zero_grad()
        run(network, CONTROL).square().mean().backward()
        gradients.append({name: one.grad for name, one in network.named_parameters() if one.grad is not None})
    assert gradients[0].keys() == {name for name, one in network.named_parameters() if one.requires_grad}
    assert all(torch.allclose(gradient, gradients[1][name]) for name, gradient in gradients[0].items())
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients[0].values())


def test_a_control_is_the_same_from_its_file(tmp_path: Path) -> None:
    network = random_network(micro_conditioning=True)
    tensors = random_control(network).tensors
    control = Control(tensors=tensors, condition=EDGES, base="pixart", base_fingerprint="ab")
    write_control(tmp_path / "control.safetensors", control)
    found = read_control(tmp_path / "control.safetensors")
    assert (found.condition, found.base, found.base_fingerprint, found.num_blocks) == (EDGES, "pixart", "ab", 2)
    assert found.fingerprint() == control.fingerprint() != Control(tensors=tensors).fingerprint()
    assert found.num_parameters == control_sizes(network.config, 2).num_parameters
    other = random_network(micro_conditioning=True)
    put_control(other, found)

    def with_sizes(one: DiT) -> Tensor:
        output: Tensor = one(latents(), TIMESTEPS, captions=captions(), sizes=SIZES, aspect_ratios=RATIOS, control=CONTROL)
        return output

    assert torch.equal(with_sizes(other), with_sizes(network))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="networks that read captions, found one that reads classes"):
        add_copies(random_network(CLASS), 1)
    with pytest.raises(UserError, match="expected 1 to 2 copied blocks, since the last one's output .* found 3"):
        add_copies(random_network(), 3)
    network = random_network()
    control = random_control(network)
    for config, words in [
        (random_network(width=24).config, "another network: 0.after.bias: expected"),
        (random_network(depth=2).config, "has copies of 2 blocks: expected 1 to 1"),
    ]:
        with pytest.raises(UserError, match=words):
            check_fits(control, config, source="a control")
    plain, route = random_network(), TokenRoute.by_rank(torch.rand(3, 24), RoutedBlocks(before=1, after=1))
    with pytest.raises(ValueError, match="expected none for a network without copies"):
        run(plain, CONTROL)
    with pytest.raises(ValueError, match="expected none where tokens are routed"):
        network(latents(), TIMESTEPS, captions=captions(), control=CONTROL, route=route)
    with pytest.raises(ValueError, match=r"control: expected \[3, 4, 8, 12\] as the latents, found \[3, 4, 8, 8\]"):
        run(network, CONTROL[..., :8])
    layer = LayerAdapter(down=torch.zeros(2, 48), up=torch.zeros(48, 2), alpha=2.0)
    write_adapter(tmp_path / "lora.safetensors", Adapter(layers={"blocks.0.attn.proj": layer}))
    with pytest.raises(UserError, match="expected a header of kind t2i-foundry control, version 1, found t2i-foundry lora"):
        read_control(tmp_path / "lora.safetensors")


def test_choices_and_default_blocks() -> None:
    assert ControlChoice.parse("runs/edges:0.5") == ControlChoice("runs/edges", 0.5)
    with pytest.raises(ValueError, match="control: expected PATH or PATH:SCALE, found a:b"):
        ControlChoice.parse("a:b")
    assert [default_blocks(depth) for depth in (28, 6, 12, 2)] == [13, 3, 6, 1]
    assert TEXT.depth == 3


def test_edges_are_those_of_the_formula() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 14, 3), dtype=np.uint8)
    smooth, difference = np.array([1, 2, 1]) / 4, np.array([-1, 0, 1])
    blurred = pixels.astype(np.float64)
    for axis in (0, 1):
        blurred = ndimage.correlate1d(blurred, smooth, axis=axis, mode="nearest")
    steps = [ndimage.correlate1d(blurred, difference, axis=axis, mode="nearest") for axis in (0, 1)]
    gradients = [ndimage.correlate1d(step, smooth, axis=1 - axis, mode="nearest") for axis, step in enumerate(steps)]
    expected = np.minimum(2 * np.hypot(*gradients).max(axis=2), 255)
    found = edge_map(pixels)
    assert found.dtype == np.uint8 and np.abs(found - expected).max() < 0.51
    assert 0 < found.mean() < 255


def test_edges_are_where_a_colour_ends_and_nowhere_else() -> None:
    pixels = np.full((8, 12, 3), 200, dtype=np.uint8)
    assert not edge_map(pixels).any()
    pixels[:, 6:, 2] = 0  # in one channel alone
    edges = edge_map(pixels)
    assert (edges[:, 5:7] == 255).all() and not edges[:, :4].any() and not edges[:, 8:].any()
