"""Renders scenes of the small world, with alt text, true descriptions and the truth as columns.

    python -m examples.openmoji.scenes --count 2000 --seed 1 --out ./scenes --format tar

Scene number i of a seed is the same in every format and for every count. The same command again finds its work done.
"""

from dataclasses import dataclass
from typing import Literal

from foundry.command_line import run_command
from foundry.errors import UserError


@dataclass(frozen=True)
class ScenesConfig:
    """Settings: the scenes to render, and the format to write them in."""

    count: int
    """Number of scenes."""
    seed: int
    """Random seed of the scenes: another seed gives other scenes."""
    out: str
    """Folder for images and `_truth.parquet`; new or empty."""
    format: Literal["jpeg", "tar", "parquet"] = "jpeg"
    """Loose JPEGs with .txt files, WebDataset tars, or Parquet with the images inside."""
    split: Literal["train", "unseen"] = "train"
    """`unseen` scenes show only combinations of kind, place and background that `train` scenes never show."""
    single_objects: bool = False
    """One object in each scene, with its kind as the class label; loose files go into a folder for each class."""
    num_kinds: int | None = None
    """Use the first kinds only, for an easier world; default: all."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count is {self.count}: ask for 1 scene or more")
        if self.num_kinds is not None and self.num_kinds < 1:
            raise ValueError(f"num_kinds is {self.num_kinds}: use 1 kind or more")


def main(config: ScenesConfig) -> int:
    """Writes the scenes and says where they are."""
    from pathlib import Path

    from examples.openmoji.scene_files import TRUTH_FILE, SceneSet, write_scenes

    wanted = SceneSet(
        count=config.count,
        seed=config.seed,
        split=config.split,
        single_objects=config.single_objects,
        num_kinds=config.num_kinds,
        format=config.format,
    )
    try:
        is_new = write_scenes(wanted, Path(config.out))
    except OSError as error:
        raise UserError(f"{config.out} cannot be written ({error}): name another folder with --out") from error
    print(f"{config.count} scenes {'written to' if is_new else 'were already in'} {config.out}; their truth: {TRUTH_FILE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            ScenesConfig,
            main,
            prog="python -m examples.openmoji.scenes",
            example="python -m examples.openmoji.scenes --count 2000 --seed 1 --out ./scenes --format tar",
        )
    )
