"""Settings of `python -m benchmarks.cheap_recipe`. Imports nothing heavy."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from examples.openmoji.demo_commands import GUIDANCE

RESOLUTION_PX = 64
_MAY_CHANGE = ("out", "num_seeds")


@dataclass(frozen=True, kw_only=True)
class CheapRecipeConfig:
    """Settings of the benchmark."""

    out: str = "runs/cheap_recipe"
    """Folder for everything that is made; the same command again resumes in it."""
    paper: str = "benchmarks/recipes/paper.yaml"
    """Settings of the paper's three stages, as `trainer.fit --config` takes them; ladders are given here."""
    cheap: str = "benchmarks/recipes/cheap.yaml"
    """Settings of the cheap recipe's two stages, likewise."""
    scenes: int = 8000
    """Number of scenes with one object that all trainings see."""
    num_kinds: int = 16
    """Number of kinds of object in them."""
    pixel_images: int = 32_000
    """Images that the paper's stage pixel sees."""
    images: int = 51_200
    """Images that the stage alignment sees, by either recipe."""
    aesthetic_share: float = 0.1875
    """Images that the stage aesthetic sees, as a share of those of the alignment before it."""
    points: int = 8
    """Number of checkpoints of the cheap alignment, evenly over it; from each a stage aesthetic is trained and scored."""
    batch_size: int = 64
    """Images of a step."""
    num_seeds: int = 3
    """Number of seeds, 0, 1, …, with which each training is done."""
    validation_images: int = 1024
    """Maximum number of validation images that the loss is measured on."""
    prompts_per_category: int = 12
    """Prompts of each of the benchmark's categories and splits, an image each; the held-out ones count."""
    guidance_scale: float = GUIDANCE
    """Guidance scale of the images that are scored."""

    def __post_init__(self) -> None:
        numbers = ("scenes", "num_kinds", "pixel_images", "images", "points", "batch_size", "num_seeds", "validation_images")
        if wrong := [name for name in (*numbers, "prompts_per_category") if getattr(self, name) < 1]:
            raise ValueError(f"{', '.join(wrong)} must be 1 or more")
        if not 0 < self.aesthetic_share <= 1:
            raise ValueError("aesthetic_share must be above 0 and at most 1")
        if self.images % (self.points * self.batch_size):
            raise ValueError(
                f"images must be a multiple of {self.points} batches of {self.batch_size}: a checkpoint after each"
            )

    @property
    def folder(self) -> Path:
        """`out`, as a path."""
        return Path(self.out)

    @property
    def point_images(self) -> tuple[int, ...]:
        """Images of the cheap alignment at each of its points."""
        return tuple(self.images // self.points * (index + 1) for index in range(self.points))

    def aesthetic_images(self, before: int) -> int:
        """Images of the stage aesthetic after an alignment of `images` images."""
        return max(1, round(self.aesthetic_share * before))

    def identity(self) -> dict[str, Any]:
        """Settings that decide the figures, in plain JSON: with others, the folder holds another benchmark."""
        recipes = {name: yaml.safe_load(Path(getattr(self, name)).read_text(encoding="utf-8")) for name in ("paper", "cheap")}
        return {name: value for name, value in asdict(self).items() if name not in _MAY_CHANGE} | recipes
