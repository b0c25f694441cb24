"""Edges for dit-mini: a control learns to follow the edges of scenes, and holds the layout of scenes that no training saw.

    python -m examples.openmoji.edges --out edges

Every step prints the command that it runs, so that you can copy it. Run again, it resumes. The prompts
name the objects and the background, and leave the places to the edges (edges_scenes.py); the evaluator `sprites` says how
many objects are drawn in the boxes that the edge map has them in, with the control and without it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from examples.openmoji.demo_steps import Step, run_steps
from foundry.command_line import run_command
from model.formats.checkpoint import MINI

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from examples.openmoji.composition import Scene

    Pixels = npt.NDArray[np.uint8]

_RESOLUTION = "64"
_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class EdgesConfig:
    """Settings of `python -m examples.openmoji.edges`."""

    out: str = "edges"
    """Folder for everything that is written."""
    training: str = "examples/openmoji/edges.yaml"
    """Settings of the training."""
    count: int = 8000
    """Number of scenes to train on."""
    num_scenes: int = 60
    """Number of scenes of held-out combinations that are drawn."""
    num_seeds: int = 3
    """Number of images of each of them, with and without the control."""

    def __post_init__(self) -> None:
        if min(self.count, self.num_scenes, self.num_seeds) < 1:
            raise ValueError("count, num_scenes and num_seeds must be 1 or more")


def main(config: EdgesConfig) -> int:
    """Runs every step, prints the scores and draws the picture; returns 0. Raises UserError as run_steps does."""
    from examples.openmoji.composition import render
    from examples.openmoji.edges_scenes import held_out_scenes, scores, write_scenes

    out = Path(config.out)
    write_scenes(out / "images", config.count)
    run_steps(out, list(steps(config)))
    scenes = held_out_scenes(config.num_scenes)
    arms: dict[str, list[list[Pixels]]] = {"the scenes themselves": [[render(scene) for scene in scenes]]}
    for name, control in (("dit-mini", None), ("with the control", str(out / "runs" / "aesthetic"))):
        arms[name] = [_drawn(scenes, control, seed=seed) for seed in range(config.num_seeds)]
    print(f"\n{len(scenes)} scenes of held-out combinations, {config.num_seeds} seeds; sprites finds, mean (by seed)")
    for name, images in arms.items():
        found = [scores(scenes, one) for one in images]
        for check in found[0]:
            values = [one[check] for one in found]
            mean = sum(values) / len(values)
            print(f"  {name:>22}  {check:<32} {mean:.0%}  ({', '.join(f'{value:.0%}' for value in values)})")
    _draw_picture(out / "edges.png", scenes[:_SHOWN], arms)
    return 0


def steps(config: EdgesConfig) -> Iterator[Step]:
    """All steps, in order."""
    out = Path(config.out)
    captions, features, runs = out / "captions", out / "features", out / "runs"
    yield Step(
        title="Import the scenes with their captions",
        module="dataset_builder.convert",
        arguments=(
            *("--source", "image-txt", "--target", "run", str(out / "images"), str(captions)),
            *("--t5.tokenizer", MINI),
        ),
        output=captions,
    )
    yield Step(
        title="Features: latents of the images and of their edges, and captions",
        module="trainer.precompute",
        arguments=(
            *("--dataset", str(captions), "--out", str(features), "--stage", "aesthetic", "--resolution", _RESOLUTION),
            *("--vae.name", MINI, "--text_encoder.name", MINI, "--control.kind", "edges"),
        ),
        output=features,
    )
    yield Step(
        title="Train a control",
        module="trainer.fit",
        arguments=("--config", config.training, "--features", str(features), "--run_dir", str(runs)),
        output=runs,
    )


def _drawn(scenes: "Sequence[Scene]", control: str | None, *, seed: int) -> "list[Pixels]":
    """An image of each scene, by its prompt alone or by its edges too."""
    import numpy as np
    from PIL import Image

    from examples.openmoji.composition import render
    from examples.openmoji.edges_scenes import prompt_of
    from model.control.settings import ControlChoice
    from model.generation.pipeline import open_pipeline
    from model.generation.request import GenerationRequest

    pipeline = open_pipeline(MINI, control=None if control is None else ControlChoice(control))
    images = []
    for scene in scenes:
        shown = None if control is None else Image.fromarray(render(scene))
        request = GenerationRequest(
            prompts=(prompt_of(scene),), seed=seed, control_image=shown, compute_edges=control is not None
        )
        images.append(np.asarray(pipeline(request)[0].image))
    return images


def _draw_picture(path: Path, scenes: "Sequence[Scene]", arms: "dict[str, list[list[Pixels]]]") -> None:
    """A column to each scene: its edges, what the network draws without the control, and with it by several seeds."""
    from PIL import Image

    from examples.openmoji.composition import render
    from model.control.edges import edge_map
    from model.generation.image_files import make_grid

    edges = [Image.fromarray(edge_map(render(scene))).convert("RGB") for scene in scenes]
    plain, *controlled = arms["dit-mini"][:1] + arms["with the control"]
    rows = [edges, *([Image.fromarray(image) for image in row[: len(scenes)]] for row in (plain, *controlled))]
    make_grid([image for row in rows for image in row], columns=len(scenes), scale=2).save(path, optimize=True)
    print(f"\n{path}: edges, what dit-mini draws by the prompt alone, and below what it draws with the control")


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            EdgesConfig,
            main,
            prog="python -m examples.openmoji.edges",
            example="python -m examples.openmoji.edges --out edges",
        )
    )
