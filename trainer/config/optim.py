"""Optimiser, learning rate, and the moving average of the weights."""

from dataclasses import dataclass
from typing import Literal

from trainer.config.check import Check

Schedule = Literal["constant", "cosine"]
OptimizerName = Literal["adamw", "muon", "adamw8bit"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Settings of the optimiser."""

    name: OptimizerName = "adamw"
    """Optimiser: adamw; muon (for the matrices of blocks, adamw for the rest); adamw8bit (moments in 8 bits, by torchao)."""
    lr: float = 2e-5
    """Learning rate after the warm-up. Source: PixArt-alpha, Table 4."""
    schedule: Schedule = "constant"
    """Schedule of the learning rate: constant, or cosine (down to zero over each resolution step)."""
    warmup_steps: int = 1000
    """Steps of linear warm-up at the start of each resolution step. Source: the authors' code."""
    weight_decay: float = 0.03
    """Weight decay of matrices that AdamW trains; norms, biases, embeddings, tables and Muon's matrices have none. Source: the
    authors' code (there: of all weights)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's first and second moment, per step."""
    eps: float = 1e-10
    """Term added to the denominator of the update. Source: the authors' code."""
    gradient_clip: float = 0.01
    """Maximum norm of the whole gradient; larger ones are scaled down to it. Source: the authors' code."""

    muon_split: bool = True
    """Orthogonalise query, key and value of a fused weight separately; false: treat the fused weight as one matrix."""
    momentum: float = 0.95
    """Decay rate of Muon's momentum, per step. Source: Jordan et al. 2024."""
    newton_schulz_steps: int = 5
    """Newton-Schulz iterations that make Muon's update orthogonal. Source: Jordan et al. 2024."""

    def checks(self) -> list[Check]:
        """Conditions on the values, for error messages."""
        return [
            ("momentum", "in [0, 1)", 0 <= self.momentum < 1),
            ("newton_schulz_steps", "1 to 20", 1 <= self.newton_schulz_steps <= 20),
            ("lr", "above 0", self.lr > 0),
            ("warmup_steps", "0 or more", self.warmup_steps >= 0),
            ("weight_decay", "0 or more", self.weight_decay >= 0),
            ("betas", "in [0, 1)", all(0 <= beta < 1 for beta in self.betas)),
            ("eps", "above 0", self.eps > 0),
            ("gradient_clip", "above 0", self.gradient_clip > 0),
        ]


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """The exponential moving average of the weights, which a checkpoint's `transformer/` holds."""

    half_life_images: int = 79_000_000
    """Half-life of the average, in images. Default: the paper's 0.9999 per step of 178 x 64 images."""
    rampup_ratio: float = 0.05
    """Upper bound of the half-life, as a share of the images seen in the resolution step, so that short runs have an average
    too (EDM)."""

    def checks(self) -> list[Check]:
        """Conditions on the values, for error messages."""
        return [
            ("half_life_images", "1 or more", self.half_life_images >= 1),
            ("rampup_ratio", "above 0", self.rampup_ratio > 0),
        ]
