"""Memory that a step really takes on a CPU: by torch's allocator, and by the tensors that autograd saves."""

from collections.abc import Callable, Iterable
from itertools import accumulate

import torch


def allocated_peak(step: Callable[[], object]) -> int:
    """The most bytes that torch's allocator has handed out at once during a call, as its profiler records them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes: list[int] = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes))


def saved_bytes(forward: Callable[[], object], *, known: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages that autograd saves for the backward pass, each once, without those of `known` tensors."""
    kept: dict[int, torch.Tensor] = {}
    left_out = {tensor.untyped_storage().data_ptr() for tensor in known}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in left_out:
            kept[address] = tensor  # alive, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
