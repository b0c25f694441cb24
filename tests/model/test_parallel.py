"""The network under DDP, FSDP2 and torch.compile computes what it computes alone, under the names that checkpoints have."""

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.distributed
from torch import Tensor
from torch._dynamo.utils import counters
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from model.dit import Captions, DiT
from tests.model.tiny_networks import TIMESTEPS, captions, latents, random_network


def _step(network: torch.nn.Module, *, autocast: bool = False) -> dict[str, Tensor]:
    """The output and the gradient of every parameter."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = network(latents(), TIMESTEPS, captions=captions())
    output.float().square().mean().backward()
    results = {"output": output.detach()}
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        results[name] = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
    return results


def _sharded(*, mixed: bool) -> DiT:
    """As docs/network.md says."""
    network = random_network()
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False) if mixed else MixedPrecisionPolicy()
    for block in network.blocks:
        fully_shard(block, mp_policy=policy)
    fully_shard(network)
    return network


@pytest.mark.usefixtures("alone")
def test_ddp_needs_no_buffers_in_step() -> None:
    expected, network = _step(random_network()), random_network()
    found = _step(DistributedDataParallel(network, forward_sync_buffers=False))
    assert all(torch.equal(found[name if name == "output" else f"module.{name}"], expected[name]) for name in expected)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_fsdp2_changes_no_number(checkpointing: bool) -> None:
    expected, network = _step(random_network()), _sharded(mixed=False)
    network.gradient_checkpointing = checkpointing
    found = _step(network)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.usefixtures("alone")
def test_fsdp2_in_mixed_precision_is_autocast_with_rounded_tables() -> None:
    expected = _step(random_network(), autocast=True)
    network = _sharded(mixed=True)
    found = _step(network, autocast=True)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert max(float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected) < 0.02


@pytest.mark.usefixtures("alone")
def test_a_sharded_state_has_the_official_names_and_all_values() -> None:
    network, original = _sharded(mixed=True), random_network().state_dict()
    network.compile_blocks()
    assert list(network.state_dict()) == list(original)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    whole: dict[str, Any] = get_model_state_dict(network, options=options)
    assert list(whole) == list(original) and all(torch.equal(whole[name], original[name]) for name in original)


def test_blocks_are_one_graph_that_serves_all_blocks_and_shapes() -> None:
    """A graph break or a compilation for each caption length would cost more than compiling gains."""
    torch._dynamo.reset()
    counters.clear()
    network = random_network()
    for block in network.blocks:
        block.compile(backend="eager", fullgraph=True)
    graphs = []
    for lengths, sides in [([3, 10, 5], (8, 12)), ([7, 1, 2], (8, 12)), ([4, 9, 9], (16, 8)), ([2, 3, 1], (12, 12))]:
        packed = Captions(tokens=torch.randn(sum(lengths), 32), lengths=torch.tensor(lengths))
        network(torch.randn(3, 4, *sides), TIMESTEPS, captions=packed).sum().backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == 1 and graphs[-1] == graphs[-2] <= 3, graphs
    assert all(new - old <= 1 for old, new in pairwise(graphs))


@pytest.mark.slow
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_compute_the_same_under_fsdp2(checkpointing: bool) -> None:
    torch._dynamo.reset()
    expected = _step(random_network(), autocast=True)
    network = _sharded(mixed=True)
    network.gradient_checkpointing = checkpointing
    network.compile_blocks()
    found = _step(network, autocast=True)
    assert max(float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected) < 0.02
    assert list(network.state_dict()) == list(random_network().state_dict())
