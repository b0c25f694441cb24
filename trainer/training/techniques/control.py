"""Control in a training: the base that is frozen, the copies of its blocks that are trained, and their average in checkpoints.

A checkpoint names its base by path and fingerprint. The base is read again when a training resumes, and another one is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from foundry.errors import UserError
from model.control.control import Control, add_copies, trained_tensors
from model.dit import DiT
from model.formats.checkpoint import check_is_network, checkpoint_fingerprint, read_pipeline_config
from trainer.config.adaptation import ControlConfig
from trainer.training.ema import Ema


@dataclass(frozen=True, kw_only=True)
class ControlState:
    """The control of a training, and the network that it is of."""

    condition: str
    """Control images, as edges/1."""
    base: str
    """Checkpoint of the frozen weights: an absolute folder, or `mini`."""
    base_fingerprint: str

    def control(self, weights: Mapping[str, Tensor]) -> Control:
        """The control among a network's tensors."""
        return Control(
            tensors=trained_tensors(weights),
            condition=self.condition,
            base=self.base,
            base_fingerprint=self.base_fingerprint,
        )


def controlled(network: DiT, config: ControlConfig, *, name: str, base: Path) -> ControlState:
    """Freezes the network and adds the copies. Raises UserError for a base that cannot have a control."""
    check_is_network(base)
    if read_pipeline_config(base).few_steps is not None:
        raise UserError(
            f"{base} is distilled to few steps, and a control learns by the loss of the network before: give that one; a LoRA "
            "of few steps can be added to it with the control",
            setting="init_from",
        )
    add_copies(network, config.chosen_blocks(network.config.depth))
    return ControlState(condition=config.condition, base=name, base_fingerprint=checkpoint_fingerprint(base))


def averaged_control(ema: Ema, state: ControlState, *, keep: bool) -> Control | None:
    """The control of the average's weights, on the CPU; none unless `keep`. All workers call it."""
    weights = ema.whole_averages(keep=keep)
    return state.control(weights) if keep else None


def control_text(network: DiT, state: ControlState) -> str:
    """The control that is trained and its base in a line, for the log."""
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    num, depth = len(network.control_blocks), network.config.depth
    return (
        f"control on {state.condition}: copies of {num} of {depth} blocks, {trained:,} values, are trained; {state.base} "
        f"({state.base_fingerprint}) is frozen"
    )
