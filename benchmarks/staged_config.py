"""The settings of `python -m benchmarks.staged_training`. Imports nothing heavy."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from examples.openmoji.demo_commands import GUIDANCE

Experiment = Literal["captions", "initialisation", "adaln", "aesthetic"]
RESOLUTION_PX = 64
MEASUREMENTS = 8
"""Number of measurements of the validation loss, evenly over a training; the last time at its end."""
_MAY_CHANGE = ("experiments", "out", "num_seeds", "shipped", "style")


@dataclass(frozen=True, kw_only=True)
class StagedTrainingConfig:
    """Settings of the benchmark."""

    experiments: tuple[Experiment, ...] = ("captions", "initialisation", "adaln", "aesthetic")
    """Experiments to run; what several of them need is trained once."""
    out: str = "runs/staged_training"
    """Folder of all that is made; the same command again resumes in it."""
    recipe: str = "examples/openmoji/demo.yaml"
    """Settings of all trainings, as `trainer.fit --config` takes them; ladders and captions are given here."""
    scenes: int = 8000
    """Scenes with one object, that all trainings see."""
    num_kinds: int = 16
    """Kinds of object in them."""
    images: int = 51_200
    """Images that each training of captions sees."""
    pixel_images: int = 32_000
    """Images that each pixel stage sees before it."""
    pixel_image_cost: float = 0.607
    """Operations of training on an image of the pixel stage, where one with a caption of 44 tokens, their mean, takes 1."""
    batch_size: int = 64
    """Images of a step."""
    num_seeds: int = 3
    """Number of seeds, 0, 1, …, with which each training is done."""
    prompts_per_category: int = 12
    """Prompts of each of the benchmark's categories and splits, an image each."""
    guidance_scale: float = GUIDANCE
    """Guidance scale of the images that are judged: that of the demo."""
    timed_steps: int = 30
    """Steps of each network whose time is taken, in turn."""
    shipped: tuple[str, str] = ("model/pretrained/dit-mini/alignment", "model/pretrained/dit-mini/aesthetic")
    """Checkpoints before and after the aesthetic stage."""
    style: str = "small"
    """A word of both judges: the share of images of bare alt texts, which leave it open, of which they say it is measured. The
    stage of dit-mini keeps a third of the scenes with a small object, so that this share must fall. Empty: not measured."""

    def __post_init__(self) -> None:
        numbers = ("scenes", "num_kinds", "images", "pixel_images", "batch_size", "num_seeds", "prompts_per_category")
        if wrong := [name for name in (*numbers, "timed_steps") if getattr(self, name) < 1]:
            raise ValueError(f"{', '.join(wrong)} must be 1 or more")
        if not 0 <= self.pixel_image_cost <= 1:
            raise ValueError("pixel_image_cost must be between 0 and 1")
        if self.images % (MEASUREMENTS * self.batch_size):
            raise ValueError(
                f"images must be a multiple of {MEASUREMENTS} batches: the loss is measured at the end of each part"
            )

    @property
    def folder(self) -> Path:
        """`out`, as a path."""
        return Path(self.out)

    def identity(self) -> dict[str, Any]:
        """Settings that determine the figures, in plain JSON: with another of these, the folder holds another benchmark."""
        recipe = _without_ladders(yaml.safe_load(Path(self.recipe).read_text(encoding="utf-8")))
        return {name: value for name, value in asdict(self).items() if name not in _MAY_CHANGE} | {"recipe": recipe}


def _without_ladders(settings: dict[str, Any]) -> dict[str, Any]:
    """The ladders are the benchmark's own, those of the stages too."""
    kept = {name: value for name, value in settings.items() if name != "ladder"}
    return {name: _without_ladders(value) if isinstance(value, dict) else value for name, value in kept.items()}
