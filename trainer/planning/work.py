"""Operations of a training: of the network, of techniques with their frozen models, and of the optimiser.

Counted as in model/flops.py. What gradient checkpointing computes again is not in it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from model.dit_config import DiTConfig
from model.flops import training_flops
from trainer.config.ladder import Rung
from trainer.config.train import TrainConfig
from trainer.planning.optimizer import optimizer_cost
from trainer.planning.techniques import TechniqueCost, planned_adaptation, technique_costs


@dataclass(frozen=True, kw_only=True)
class TrainingWork:
    """Operations of a resolution step, on square images."""

    rung: Rung
    image: float
    """Operations of the network per image."""
    routed_image: float
    """The same while tokens are routed."""
    routed_images: int
    """Images, from the first one on, that are trained with routing."""
    techniques: tuple[TechniqueCost, ...]
    optimizer: float
    """Operations of the optimiser per step."""

    def flops(self, images: int | None = None) -> float:
        """Operations of the first `images` images; default: of all."""
        images = self.rung.images_seen if images is None else images
        routed = min(images, self.routed_images)
        acting = (min(images, cost.share * self.rung.images_seen) * cost.flops_per_image for cost in self.techniques)
        network = routed * self.routed_image + (images - routed) * self.image
        return network + sum(acting) + images / self.rung.batch_size * self.optimizer


def training_work(
    train: TrainConfig, rung: Rung, network: DiTConfig, *, caption_tokens: float, teacher_width: int = 0
) -> TrainingWork:
    """The operations of a rung of the ladder. `teacher_width`: channels of a teacher whose features are stored.

    Raises UserError for a teacher or VAE that is unavailable.
    """
    grid = (network.base_grid, network.base_grid)
    adapted, routed = planned_adaptation(train, network), train.routing.blocks
    index, num_tokens = train.ladder.index(rung), network.base_grid**2
    return TrainingWork(
        rung=rung,
        image=training_flops(network, grid=grid, caption_tokens=caption_tokens, adapted=adapted),
        routed_image=training_flops(network, grid=grid, caption_tokens=caption_tokens, routed=routed, adapted=adapted),
        routed_images=train.routing.routed_images(train.ladder, index, num_tokens=num_tokens),
        techniques=technique_costs(train, rung, network, stored_width=teacher_width, caption_tokens=caption_tokens),
        optimizer=optimizer_cost(network, train.optim).step_flops,
    )


@dataclass(frozen=True, kw_only=True)
class AddedWork:
    """Operations of a step besides the network's; without a technique's, they are not counted."""

    techniques: Mapping[str, float] = field(default_factory=dict)
    """Operations per image of each technique that is on, where it acts, by name."""
    optimizer: float = 0.0
    """Operations of the optimiser per step."""

    def flops(self, acting: Collection[str], *, num_images: int) -> float:
        """Operations of a step in which these techniques act."""
        return num_images * sum(self.techniques.get(name, 0.0) for name in acting) + self.optimizer


def added_work(train: TrainConfig, rung: Rung, network: DiTConfig, *, teacher_width: int = 0) -> AddedWork:
    """Operations that techniques and optimiser add to the steps of a rung of the ladder. Raises as `training_work`."""
    costs = technique_costs(train, rung, network, stored_width=teacher_width)
    return AddedWork(
        techniques={cost.name: cost.flops_per_image for cost in costs},
        optimizer=optimizer_cost(network, train.optim).step_flops,
    )
