"""Training techniques that add a loss, or replace it: each a dataclass, off by default, with the sizes of what it trains.

The losses themselves are in trainer/training/techniques/. Sizes are here, since a plan needs them too.
"""

from dataclasses import asdict, dataclass
from typing import Any

from foundry.hardware import AutoDtype
from model.dit_config import FewSteps, FewStepsMethod
from trainer.config.check import Check

STORED = "stored"
"""Name of the teacher whose features are stored with the latents."""
_PAPER_WIDTH = 1152
_PAPER_HIDDEN = 2048


@dataclass(frozen=True, kw_only=True)
class RepaConfig:
    """REPA: the tokens behind a block predict what a frozen vision tower sees in the clean image; on where a teacher is named.

    Source: Yu et al. 2024 (arXiv 2410.06940), section 3.
    """

    teacher: str | None = None
    """Teacher, which enables REPA: a hub id or folder of a vision tower (DINOv2, CLIP, SigLIP) or of a vision-language model
    with one; `mini`: the small world's; `stored`: what trainer.precompute stored."""
    revision: str | None = None
    """Commit or tag of a teacher on the hub."""
    weight: float = 0.5
    """Weight of the loss. Source: REPA."""
    block: int | None = None
    """Number of the block whose tokens are aligned, from 1; default: 29 % of the depth, 8 of 28. Source: REPA."""
    hidden: int | None = None
    """Hidden channels of the projector; default: 2048, or in proportion for networks narrower than 1152. Source: REPA."""
    stop_share: float = 1.0
    """Share of each resolution step's images after which REPA stops, above 0 to 1. Source: 0.15 to 0.4, Iris and PRX."""
    stop_images: int | None = None
    """Number of images of the stage after which REPA stops; default: no limit."""
    dtype: AutoDtype = "auto"
    """Number format of the teacher; auto: bfloat16 if the hardware supports it, otherwise float32."""

    @property
    def is_on(self) -> bool:
        """True where it takes part in the training."""
        return self.teacher is not None

    def chosen_block(self, depth: int) -> int:
        """The block's number in a network of this many blocks."""
        return self.block or _aligned_block(depth)

    def projector_widths(self, width: int, *, teacher_width: int) -> tuple[int, ...]:
        """Channels before, between and behind the projector's linear layers, at a network's width."""
        hidden = self.hidden or max(1, round(_PAPER_HIDDEN * min(1.0, width / _PAPER_WIDTH)))
        return (width, hidden, hidden, teacher_width)

    def checks(self) -> list[Check]:
        """Conditions on the values, for error messages."""
        return [
            ("weight", "above 0", self.weight > 0),
            ("block", "1 or more", self.block is None or self.block >= 1),
            ("hidden", "1 or more", self.hidden is None or self.hidden >= 1),
            ("stop_share", "above 0 and at most 1", 0 < self.stop_share <= 1),
            ("stop_images", "1 or more", self.stop_images is None or self.stop_images >= 1),
            ("teacher", "a name or a folder, not empty", self.teacher != ""),
        ]


@dataclass(frozen=True, kw_only=True)
class Sra2Config:
    """SRA 2: the tokens behind an early block predict the clean latents of their patch.

    Source: Wang et al. 2026 (arXiv 2601.17830).
    """

    enabled: bool = False
    """Enable SRA 2."""
    weight: float = 1.0
    """Weight of the loss. Source: SRA 2."""
    block: int | None = None
    """Number of the block whose tokens predict, from 1; default: 2 of 12, 8 of 28, in proportion between. Source: SRA 2."""
    beta: float = 0.05
    """Error at which the smooth L1 loss changes from a square to a line. Source: SRA 2."""

    @property
    def is_on(self) -> bool:
        """True where it takes part in the training."""
        return self.enabled

    def chosen_block(self, depth: int) -> int:
        """The block's number in a network of this many blocks: on the line from 2 of 12 to 8 of 28, and at least 1."""
        return self.block or max(1, min(_aligned_block(depth), round(2 + (depth - 12) * 6 / 16)))

    def projector_widths(self, width: int, *, patch_values: int) -> tuple[int, ...]:
        """Channels before, between and behind the projector's five linear layers; `patch_values` latents are a patch."""
        return (*[width] * 5, patch_values)

    def checks(self) -> list[Check]:
        """Conditions on the values, for error messages."""
        return [
            ("weight", "above 0", self.weight > 0),
            ("block", "1 or more", self.block is None or self.block >= 1),
            ("beta", "above 0", self.beta > 0),
        ]


@dataclass(frozen=True, kw_only=True)
class LayerSyncConfig:
    """LayerSync: the tokens behind an early block follow those behind a later one, which does not follow them.

    Source: Haghighi et al. 2025 (arXiv 2510.12581).
    """

    enabled: bool = False
    """Enable LayerSync."""
    weight: float = 0.2
    """Weight of the loss. Source: LayerSync."""
    block: int | None = None
    """Number of the block that follows, from 1; default: 29 % of the depth, 8 of 28. Source: LayerSync."""
    target: int | None = None
    """Number of the block that is followed; default: 57 % of the depth, 16 of 28. Source: LayerSync."""

    @property
    def is_on(self) -> bool:
        """True where it takes part in the training."""
        return self.enabled

    def chosen_block(self, depth: int) -> int:
        """The number of the block that follows, in a network of this many blocks."""
        return self.block or _aligned_block(depth)

    def chosen_target(self, depth: int) -> int:
        """The number of the block that is followed: behind the other one."""
        return self.target or max(self.chosen_block(depth) + 1, round(depth * 16 / 28))

    def checks(self) -> list[Check]:
        """Conditions on the values, for error messages."""
        return [
            ("weight", "above 0", self.weight > 0),
            ("block", "1 or more", self.block is None or self.block >= 1),
            ("target", "1 or more, and not block", self.target is None or (self.target >= 1 and self.target != self.block)),
        ]


@dataclass(frozen=True, kw_only=True)
class DispersiveConfig:
    """Dispersive loss: drives the hidden states of different samples apart.

    Source: Wang and He 2025 (arXiv 2506.09027), InfoNCE with squared distances.
    """

    enabled: bool = False
    """Enable the dispersive loss."""
    weight: float = 0.5
    """Weight of the loss. Source: the paper."""
    temperature: float = 0.5
    """Temperature: distances are divided by it. Source: the paper."""
    block: int | None = None
    """Number of the block whose tokens are driven apart, from 1; default: a quarter of the depth."""
    group: int = 64
    """Number of successive samples of the batch that are compared with each other, so that the loss does not depend on workers
    or micro-batches. It must divide a worker's share of the batch, and should be above 32."""

    @property
    def is_on(self) -> bool:
        """True where it takes part in the training."""
        return self.enabled

    def chosen_block(self, depth: int) -> int:
        """The block's number in a network of this many blocks."""
        return self.block or max(1, round(depth / 4))

    def checks(self) -> list[Check]:
        """Conditions on the values, for error messages."""
        return [
            ("weight", "above 0", self.weight > 0),
            ("temperature", "above 0", self.temperature > 0),
            ("block", "1 or more", self.block is None or self.block >= 1),
            ("group", "2 or more", self.group >= 2),
        ]


@dataclass(frozen=True, kw_only=True)
class FewStepsConfig:
    """Distillation of the network that training starts from to few steps; the stage few_steps switches it on.

    Source: LCM (arXiv 2310.04378), PixArt-delta (2401.05252); rectification: PeRFlow (2405.07510).
    """

    enabled: bool = False
    """Switch the distillation on; it replaces the loss of the objective."""
    method: FewStepsMethod = "consistency"
    """Method: consistency, or rectification (rectified flow only)."""
    num_inference_steps: int = 4
    """Number of sampling steps that the network is trained for; rectification has a window for each."""
    guidance_scale: float = 4.5
    """Guidance scale of the teacher, which the network then has inside."""
    teacher_steps: int = 4
    """Number of guided steps of the teacher in a window (rectification); consistency has one of 50 from noise to image."""
    start_share: float = 0.5
    """Share of the samples that are at the start of their window, where sampling reads the network (rectification)."""
    huber: float = 0.001
    """Size of a difference from which its distance grows linearly (consistency). Source: LCM's public code."""
    target_decay: float = 0.95
    """Share of the target, a moving average of the network, that is kept in a step (consistency). Source: LCM's public code."""

    @property
    def is_on(self) -> bool:
        """True where it takes part in the training."""
        return self.enabled

    @property
    def result(self) -> FewSteps | None:
        """What the network can do then; none where it is off."""
        if not self.is_on:
            return None
        return FewSteps(method=self.method, num_inference_steps=self.num_inference_steps, guidance_scale=self.guidance_scale)

    def record(self) -> dict[str, dict[str, Any]]:
        """The settings that a resumed training must share; empty where it is off."""
        values = asdict(self)
        return {"few_steps": {name: value for name, value in values.items() if name != "enabled"}} if self.is_on else {}

    def checks(self) -> list[Check]:
        """What its values must be."""
        return [
            ("num_inference_steps", "1 to 50", 1 <= self.num_inference_steps <= 50),
            ("guidance_scale", "1 or more", self.guidance_scale >= 1),
            ("teacher_steps", "1 or more", self.teacher_steps >= 1),
            ("start_share", "0 to 1", 0 <= self.start_share <= 1),
            ("huber", "above 0", self.huber > 0),
            ("target_decay", "from 0 to below 1", 0 <= self.target_decay < 1),
        ]


def _aligned_block(depth: int) -> int:
    """29 % of the depth, 8 of 28; at least 1."""
    return max(1, round(0.29 * depth))
