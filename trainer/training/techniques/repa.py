"""REPA: tokens behind a block, through a projector, align with what a frozen vision tower sees in the clean image.

What the teacher sees is computed in training, from the latents (model/encoders/teacher.py), or was stored with them.
Source: Yu et al. 2024 (arXiv 2410.06940), section 3. Deviation: images are decoded from latents, not read again.
Shapes: B samples, N = h w tokens, D width, F channels of the teacher.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from model.dit_config import DiTConfig
from model.encoders.teacher import Teacher
from trainer.config.ladder import LadderPosition
from trainer.config.techniques import RepaConfig
from trainer.data.batches import MicroBatch
from trainer.training.techniques.technique import Technique, projector


class Repa(Technique):
    """Minus the cosine between projected tokens and the teacher's."""

    def __init__(
        self, config: RepaConfig, network: DiTConfig, *, teacher: Teacher | None, teacher_width: int, fingerprint: str
    ) -> None:
        """`teacher`: none where what it sees is stored; `fingerprint`: of its weights."""
        block = config.chosen_block(network.depth)
        widths = config.projector_widths(network.width, teacher_width=teacher_width)
        # Not the teacher's name, which a folder may change, and not its number format, which the hardware may.
        settings = {name: value for name, value in asdict(config).items() if name not in ("teacher", "revision", "dtype")}
        record = settings | {"block": block, "hidden": widths[1], "teacher": fingerprint, "stored": teacher is None}
        super().__init__("repa", weight=config.weight, blocks=(block,), record=record)
        self._config = config
        self._patch_size = network.patch_size
        self._teacher = teacher
        self.projector = projector(widths)

    @property
    def reads_teacher(self) -> bool:
        """Whether what the teacher sees is stored."""
        return self._teacher is None

    def num_images(self, position: LadderPosition) -> int:
        """Up to the share of the resolution step, and to the images of the stage, after which it stops."""
        images = math.ceil(self._config.stop_share * position.rung.images_seen)
        if self._config.stop_images is None:
            return images
        return min(images, max(0, self._config.stop_images - position.images_before))

    def forward(self, outputs: Mapping[int, Tensor], batch: MicroBatch) -> Tensor:
        """(B,) in -1..1 from the tokens (B, N, D) of its block."""
        (tokens,) = outputs.values()
        target = batch.teacher
        if self._teacher is not None:
            grid = (batch.latents.shape[2] // self._patch_size, batch.latents.shape[3] // self._patch_size)
            target = self._teacher.features(batch.latents, grid)  # (B, N, F)
        assert target is not None, "it is stored, and was read"
        predicted = self.projector(tokens)  # (B, N, F)
        with torch.autocast(tokens.device.type, enabled=False):
            target = batch.seen(target, like=tokens)  # (B, K, F)
            return -F.cosine_similarity(predicted.float(), target, dim=2).mean(1)  # (B,)
