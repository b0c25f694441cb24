"""Muon: momentum whose update of each matrix is made orthogonal. Parameters that are no matrices of blocks have AdamW.

    M = mu M + G          U = G + mu M          W -= lr * 0.2 * sqrt(max(rows, columns)) * orthogonal(U)

Among several workers each matrix is made orthogonal whole, by one of them: a round has a matrix for every worker. Sharded
weights (FSDP2) travel to the owner and back, rows of a worker at a time; copies (DDP) get the owner's result. So the update
does not depend on the number of workers beyond rounding, and the momentum is sharded as the weights are.
Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the scale, with which AdamW's learning
rates fit, is that of Liu et al. 2025, "Muon is scalable for LLM training".
Deviation from torch.optim.Muon, which takes whole, unsharded matrices alone: fused ones are split, shards are gathered, and the
number format of the iterations is the training's, since processors without bfloat16 emulate it slowly.

Shapes: P matrices in one weight, R rows and C columns of each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic whose iteration brings singular values in (0, 1] near 1."""
_UPDATE_RMS = 0.2
_LEAST_NORM = 1e-20
"""A gradient of zeros, such as that behind a projection of zeros, has an update of zeros."""


@dataclass(frozen=True, kw_only=True)
class MuonSettings:
    """Settings of the matrices."""

    momentum: float
    """Decay rate of the momentum per step."""
    num_iterations: int
    """Newton-Schulz iterations."""
    dtype: torch.dtype
    """Number format of the iterations."""


class Muon(torch.optim.AdamW):
    """Muon for matrices, AdamW for the rest. The matrices have no weight decay. All workers make the same calls."""

    def __init__(
        self, matrices: Mapping[nn.Parameter, int], others: list[dict[str, Any]], settings: MuonSettings, **adamw: Any
    ) -> None:
        """`matrices`: the number of matrices that each weight holds along its rows; `others`, `adamw`: see torch's AdamW."""
        super().__init__(others, **adamw)
        self._settings = settings
        # The largest first, so that the work of a round is even.
        self._parts = dict(sorted(matrices.items(), key=lambda pair: pair[0].numel(), reverse=True))
        self.add_param_group({"params": list(matrices), "weight_decay": 0.0})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step; the gradients of the matrices are freed."""
        lr = self.param_groups[-1]["lr"]
        matrices = [parameter for parameter in self._parts if parameter.grad is not None]
        size = dist.get_world_size(_group(matrices)) if dist.is_initialized() else 1
        for start in range(0, len(matrices), size):
            owned = matrices[start : start + size]
            updates = [self._update(parameter) for parameter in owned]
            for parameter, update in zip(owned, self._orthogonal(owned, updates), strict=True):
                rows, columns = parameter.shape[0] // self._parts[parameter], parameter.shape[1]
                _local(parameter).add_(update, alpha=-lr * _UPDATE_RMS * max(rows, columns) ** 0.5)
        super().step()  # which passes over what has no gradient

    def _update(self, parameter: nn.Parameter) -> Tensor:
        """U of this worker's rows; the momentum moves on."""
        assert parameter.grad is not None
        gradient, state = _local(parameter.grad), self.state[parameter]
        parameter.grad = None
        if not state:
            state["momentum"] = torch.zeros_like(parameter.detach())
        momentum = _local(state["momentum"])
        momentum.mul_(self._settings.momentum).add_(gradient)
        return gradient.add(momentum, alpha=self._settings.momentum)

    def _orthogonal(self, owned: Sequence[nn.Parameter], updates: Sequence[Tensor]) -> list[Tensor]:
        """The orthogonal updates of a round, of which this worker makes its own."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return [self._orthogonal_whole(owned[0], updates[0])]
        rank = dist.get_rank(_group(owned))
        own = owned[rank] if rank < len(owned) else None
        if isinstance(owned[0], DTensor):
            whole = _gather_rows(owned, updates)
            return _scatter_rows(owned, None if own is None else self._orthogonal_whole(own, whole), updates)
        found = [torch.empty_like(update, dtype=self._settings.dtype) for update in updates]
        if own is not None:
            found[rank] = self._orthogonal_whole(own, updates[rank]).contiguous()
        for work in [dist.broadcast(tensor, src=source, async_op=True) for source, tensor in enumerate(found)]:
            assert work is not None, "this process is in the group"
            work.wait()
        return found

    def _orthogonal_whole(self, parameter: nn.Parameter, update: Tensor) -> Tensor:
        """A whole weight (P R, C), each of its matrices by itself."""
        split = update.unflatten(0, (self._parts[parameter], -1))  # (P, R, C)
        settings = self._settings
        return newton_schulz(split, num_iterations=settings.num_iterations, dtype=settings.dtype).flatten(0, 1)  # (P R, C)


def newton_schulz(matrices: Tensor, *, num_iterations: int, dtype: torch.dtype) -> Tensor:
    """The matrices (P, R, C) with singular values near 1 (0.7 to 1.2 after five iterations) for their own, in `dtype`."""
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = (x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=_LEAST_NORM)).to(dtype)
    a, b, c = COEFFICIENTS
    for _ in range(num_iterations):
        gram = x @ x.mT  # (P, R, R) of the shorter side
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def _gather_rows(owned: Sequence[nn.Parameter], updates: Sequence[Tensor]) -> Tensor:
    """Each worker's rows of the matrices travel to their owners; the whole update that this worker owns, else nothing."""
    group = _group(owned)
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    sent = [_padded(update, parameter) for parameter, update in zip(owned, updates, strict=True)]
    num_own = len(sent[rank]) if rank < len(sent) else 0
    received = updates[0].new_empty(size * num_own)
    dist.all_to_all_single(
        received,
        torch.cat(sent),
        output_split_sizes=[num_own] * size,
        input_split_sizes=[len(part) for part in sent] + [0] * (size - len(sent)),
        group=group,
    )
    if not num_own:
        return received
    shape = owned[rank].shape
    return received.view(-1, shape[1])[: shape[0]]  # the padding is at the end: only the last workers have fewer rows


def _scatter_rows(owned: Sequence[nn.Parameter], own: Tensor | None, updates: Sequence[Tensor]) -> list[Tensor]:
    """The way back: the owners' results travel to the workers; this worker's rows of each matrix."""
    group = _group(owned)
    size = dist.get_world_size(group)
    sizes = [_rows_of_a_worker(parameter) * parameter.shape[1] for parameter in owned]
    sent = torch.empty(0, device=updates[0].device) if own is None else own.float().flatten()
    num_own = 0 if own is None else sizes[dist.get_rank(group)]
    sent = nn.functional.pad(sent, (0, size * num_own - len(sent)))
    received = updates[0].new_empty(sum(sizes))
    dist.all_to_all_single(
        received,
        sent,
        output_split_sizes=sizes + [0] * (size - len(sizes)),
        input_split_sizes=[num_own] * size,
        group=group,
    )
    parts = zip(received.split(sizes), updates, strict=True)
    return [part[: update.numel()].view_as(update) for part, update in parts]


def _padded(update: Tensor, parameter: nn.Parameter) -> Tensor:
    """This worker's rows, filled up to as many as the first worker has."""
    flat = update.flatten()
    return nn.functional.pad(flat, (0, _rows_of_a_worker(parameter) * parameter.shape[1] - len(flat)))


def _rows_of_a_worker(parameter: nn.Parameter) -> int:
    """Rows of all workers but perhaps the last ones, as FSDP2 shards a weight."""
    return -(-parameter.shape[0] // dist.get_world_size(_group([parameter])))


def _group(parameters: Sequence[nn.Parameter]) -> dist.ProcessGroup | None:
    """The workers that share these weights; all, where each has them whole."""
    sharded = parameters[0] if parameters else None
    if not isinstance(sharded, DTensor):
        return None
    mesh = sharded.device_mesh
    return mesh.get_group(mesh.ndim - 1)  # along the others are copies


def _local(tensor: Tensor) -> Tensor:
    """This worker's shard; a tensor that is not sharded as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
