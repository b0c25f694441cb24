"""Pairs for the rewriter of the small world: `python -m examples.openmoji.rewriter_pairs pairs.parquet`.

The prompts are as a person would write them, with sizes, places or the background left open at will, or a medium or short
description; the captions are true dense descriptions of the same scenes, in one phrasing, so that the rewriter learns what they
say and not how they vary. Some prompts are such a caption already, and stay as they are. All scenes are of the split `train`:
no caption holds a held-out combination.
"""

import itertools
import random
from dataclasses import dataclass
from pathlib import Path

from examples.openmoji.composition import Scene, draw_scene
from examples.openmoji.descriptions import describe
from examples.openmoji.labelled_texts import labelled_text
from foundry.command_line import run_command

_FORMS = {"prompt": 0.7, "medium": 0.15, "short": 0.1, "dense": 0.05}
_OBJECT, _BACKGROUND = ", is ", ". the background is "
"""Text that captions of the one phrasing contain: "a large owl, a gray bird, is on the left. … the background is plain
blue."."""


@dataclass(frozen=True)
class RewriterPairsConfig:
    """Settings of the pairs."""

    out: str
    """Parquet file to write, with the columns prompt and caption."""
    count: int = 100_000
    """Number of pairs, each of its own scene."""
    seed: int = 20
    """Random seed of scenes and phrasings."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be 1 or more, found {self.count}")


def main(config: RewriterPairsConfig) -> int:
    """Writes the file and returns 0."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from foundry.storage.folder import new_file

    rows = [dict(zip(("prompt", "caption"), pair(config.seed, index), strict=True)) for index in range(config.count)]
    with new_file(Path(config.out)) as partial:
        pq.write_table(pa.Table.from_pylist(rows), partial)
    print(f"{config.out}: {config.count} pairs")
    return 0


def pair(seed: int, index: int) -> tuple[str, str]:
    """Prompt and caption of the scene of this index."""
    scene = draw_scene(seed=seed, index=index)
    form = random.Random(f"{seed}/{index}/form").choices(list(_FORMS), list(_FORMS.values()))[0]
    caption = _caption(scene)
    return caption if form == "dense" else labelled_text(scene, form, seed=seed).text, caption


def _caption(scene: Scene) -> str:
    """The dense description in the phrasing of all captions."""
    texts = (describe(scene, seed=phrasing).dense.lower() for phrasing in itertools.count())
    return next(text for text in texts if _OBJECT in text and _BACKGROUND in text)


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            RewriterPairsConfig,
            main,
            prog="python -m examples.openmoji.rewriter_pairs",
            example="python -m examples.openmoji.rewriter_pairs runs/rewriter/pairs.parquet",
            positional=["out"],
        )
    )
