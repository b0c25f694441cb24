"""Distributed context: rank, world size, device, and collectives (NCCL, gloo).

One process alone needs no group. Several are started by Ray Train (trainer/training/ray_workers.py) or by anything that sets
RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as torchrun and Slurm scripts do: NCCL between GPUs, gloo between
CPUs.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from foundry.errors import UserError
from foundry.hardware import own_device

Result = TypeVar("Result")


COPIES, SHARDS = "copies", "shards"
"""Dimensions of a mesh of workers: each row holds all shards of a copy."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """This process among the workers."""

    rank: int = 0
    """Index of this process, from 0."""
    num: int = 1
    """Number of processes."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Device of this process."""
    control: Any = None
    """A gloo group for flags and numbers on the CPU; none for one process."""
    saving: Any = None
    """Another, for the thread that writes checkpoints."""
    meshes: dict[int, DeviceMesh] = field(default_factory=dict)
    """Meshes made so far, by the number of shards of a copy."""

    @property
    def is_first(self) -> bool:
        """True for the worker that writes what is written once."""
        return self.rank == 0

    def wait_for_device(self) -> None:
        """Waits until this worker's device has no work left."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def mesh(self, num_shards: int) -> DeviceMesh:
        """The mesh over which weights are sharded, and copied along its first dimension. All workers must call it."""
        if num_shards not in self.meshes:
            copies = self.num // num_shards
            shape, names = ((copies, num_shards), (COPIES, SHARDS)) if copies > 1 else ((num_shards,), (SHARDS,))
            self.meshes[num_shards] = init_device_mesh(self.device.type, shape, mesh_dim_names=names)
        return self.meshes[num_shards]

    def slice(self, batch_size: int) -> range:
        """The indices of the global batch that this worker reads. `batch_size` is a multiple of the number of workers."""
        own = batch_size // self.num
        return range(self.rank * own, (self.rank + 1) * own)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over workers of CPU tensors of one shape."""
        if self.num > 1:
            values = values.clone()
            dist.all_reduce(values, group=self.control)
        return values

    def any(self, flag: bool) -> bool:
        """True where the flag is set on any worker. All must call it."""
        return bool(self.sum(torch.tensor(int(flag))) > 0)

    def from_first(self, value: Any) -> Any:
        """The first worker's value, on all."""
        if self.num == 1:
            return value
        values = [value if self.is_first else None]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def first_does(self, work: Callable[[], Result]) -> Result:
        """Has the first worker alone do something; all get its result, or raise what it raised (OSError, ValueError)."""
        result, error = None, None
        if self.is_first:
            try:
                result = work()
            except (OSError, ValueError) as raised:
                if self.num == 1:
                    raise
                error = raised
        result, error = self.from_first((result, error))
        if error is not None:
            raise error
        return cast(Result, result)

    def gather(self, value: Any) -> list[Any]:
        """Every worker's value, in order, on all."""
        if self.num == 1:
            return [value]
        values: list[Any] = [None] * self.num
        dist.all_gather_object(values, value, group=self.control)
        return values


@contextmanager
def join_workers(device: str, *, timeout_s: int) -> Iterator[Workers]:
    """Joins the group that the environment or Ray Train describes; leaves it at the end where it was made here.

    Raises UserError for a device that this machine has not.
    """
    under_ray = dist.is_initialized()
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = _device(device, local_rank=int(os.environ.get("LOCAL_RANK", "0")) if expected > 1 or under_ray else 0)
    if not under_ray and expected > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout_s))
    if not dist.is_initialized() or dist.get_world_size() == 1:
        yield Workers(device=chosen)
        return
    groups = [dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s)) for _ in range(2)]
    yield Workers(rank=dist.get_rank(), num=dist.get_world_size(), device=chosen, control=groups[0], saving=groups[1])
    if not under_ray:
        dist.destroy_process_group()


def _device(name: str, *, local_rank: int) -> torch.device:
    if name == "auto":
        name = own_device()
    try:
        device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"{name}: {str(error).splitlines()[0]}", setting="device") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
