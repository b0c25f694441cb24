"""The paper's figures of its own training: Table 4 as rows, and what they imply, to compare plans with.

Source: PixArt-alpha (arXiv 2310.00426 v3), Table 4 and abstract. Captioning and feature extraction are not in its figures.
"""

from dataclasses import dataclass, replace

from model.dit_config import PRESETS, Conditioning
from model.flops import training_flops
from trainer.monitoring.gpus import GPUS, PAPER_A100_PER_V100

PAPER_A100_DAYS = 753
PAPER_DOLLARS = 28_400
PAPER_DATASET_IMAGES = {"pixel": 1_000_000, "alignment": 10_000_000, "aesthetic": 14_000_000}
"""Images of each stage's data set."""


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A row of Table 4."""

    stage: str
    resolution: int
    num_steps: int
    batch_size: int
    v100_days: int

    @property
    def images_seen(self) -> int:
        """Repetitions counted."""
        return self.num_steps * self.batch_size

    @property
    def flops(self) -> float:
        """FLOPs of the whole row, for DiT-XL/2 with captions padded to 120 tokens, as the authors' code has them."""
        conditioning: Conditioning = "class" if self.stage == "pixel" else "text"
        config = replace(PRESETS["XL/2"], conditioning=conditioning, sample_size=self.resolution // 8)
        grid = (config.base_grid, config.base_grid)
        return self.images_seen * training_flops(config, grid=grid, caption_tokens=config.max_caption_tokens)

    @property
    def utilisation(self) -> float:
        """The share of a V100's fp16 peak that the row's GPU-days imply."""
        return self.flops / (self.v100_days * 86_400 * GPUS["v100"].peak_flops)


PAPER_ROWS = (
    PaperRow(stage="pixel", resolution=256, num_steps=300_000, batch_size=128 * 8, v100_days=88),
    PaperRow(stage="alignment", resolution=256, num_steps=150_000, batch_size=178 * 64, v100_days=672),
    PaperRow(stage="aesthetic", resolution=256, num_steps=90_000, batch_size=178 * 64, v100_days=416),
    PaperRow(stage="aesthetic", resolution=512, num_steps=100_000, batch_size=40 * 64, v100_days=320),
    PaperRow(stage="aesthetic", resolution=1024, num_steps=16_000, batch_size=12 * 32, v100_days=160),
)


def paper_a100_days() -> float:
    """The sum of the rows in A100-days."""
    return sum(row.v100_days for row in PAPER_ROWS) / PAPER_A100_PER_V100


def paper_dollars_per_a100_hour() -> float:
    """The price that the paper's sum implies."""
    return PAPER_DOLLARS / (PAPER_A100_DAYS * 24)
