"""Exponential moving average of the weights (EMA), with a half-life in images, sharded as they are.

Source: EDM (Karras et al. 2022), its ramp-up.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from trainer.config.optim import EmaConfig


class Ema:
    """An average of a network's parameters that are trained, sharded as they are, in float32."""

    def __init__(self, network: nn.Module) -> None:
        trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        self.weights = {name: parameter.detach().clone() for name, parameter in trained.items()}
        self._network = network

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Moves the average towards the parameters; decay 0 makes it equal to them."""
        torch._foreach_lerp_(_local(self.weights.values()), self._parameters(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network has the average's weights inside, and its own again after, bit for bit."""
        self._reshard()  # a forward without a backward pass has left whole weights behind
        own = [parameter.clone() for parameter in self._parameters()]
        with torch.no_grad():
            torch._foreach_copy_(self._parameters(), _local(self.weights.values()))
            try:
                yield
            finally:
                self._reshard()  # else its next forward would read the average, gathered before
                torch._foreach_copy_(self._parameters(), own)

    def full_weights(self, *, keep: bool) -> dict[str, Tensor]:
        """Whole tensors on the CPU, with the network's buffers: a copy; empty unless `keep`.

        Where they are sharded all workers must call this, one tensor is whole at a time, and only some keep them.
        """
        return _wholes(dict(self._network.state_dict()) | self.weights, keep=keep)

    def whole_averages(self, *, keep: bool) -> dict[str, Tensor]:
        """The same of the parameters that are trained alone."""
        return _wholes(self.weights, keep=keep)

    def _reshard(self) -> None:
        for module in self._network.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _parameters(self) -> list[Tensor]:
        return _local(parameter.detach() for parameter in self._network.parameters() if parameter.requires_grad)


def ema_decay(config: EmaConfig, *, batch_size: int, images_seen: int) -> float:
    """The decay of a step; `images_seen` of the rung, this step's included."""
    half_life = min(config.half_life_images, config.rampup_ratio * images_seen)
    return float(0.5 ** (batch_size / half_life))


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together again; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _wholes(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    pairs = ((name, whole(tensor)) for name, tensor in tensors.items())
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in pairs if keep}


def _local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The shard of each tensor that is on this worker."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
