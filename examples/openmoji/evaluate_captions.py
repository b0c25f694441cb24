"""Captions scenes with a LLaVA and prints how accurate the captions are.

    python -m examples.openmoji.evaluate_captions --count 1000

Greedy, in float32, on scenes of held-out combinations, read back from JPEG.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from foundry.command_line import run_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from examples.openmoji.composition import Scene
    from examples.openmoji.truth import CaptionFigures


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings: scenes and model."""

    model: str = "captioner/pretrained/llava-mini"
    """Folder of a LLaVA."""
    count: int = 1000
    """Number of scenes."""
    seed: int = 1000
    """Random seed of the first image of each prompt; with openmoji, of the first prompt, and the following prompts count up
    from it."""
    split: Literal["train", "unseen"] = "unseen"
    """Split: combinations of kind, place and background that training showed, or unseen ones."""
    prompt: Literal["dense", "medium", "short"] = "dense"
    """Name of llava-mini's prompt."""
    batch_size: int = 50
    """Images a batch."""
    num_threads: int = 2
    """Threads of torch."""
    show: int = 3
    """Number of wrong captions to print."""


def main(config: EvaluateConfig) -> int:
    """Prints the figures, as a table and as a line of JSON."""
    import dataclasses
    import json

    import torch

    torch.set_num_threads(config.num_threads)
    figures = dataclasses.asdict(evaluate(config))
    for name, value in figures.items():
        print(f"{name:20} {value:.4f}" if isinstance(value, float) else f"{name:20} {value}")
    print(json.dumps(figures))
    return 0


def evaluate(config: EvaluateConfig) -> "CaptionFigures":
    """The figures of a model's captions."""
    from examples.openmoji.composition import draw_scene
    from examples.openmoji.truth import judge, truth_of

    scenes = [draw_scene(seed=config.seed, index=index, split=config.split) for index in range(config.count)]
    captions = caption_scenes(config, scenes)
    truths = [truth_of(scene) for scene in scenes]
    wrong = [i for i in range(config.count) if judge(captions[i : i + 1], truths[i : i + 1]).object_f1 < 1]
    for i in wrong[: config.show]:
        print(f"wrong: {captions[i]}\n  true: {', '.join(f'{o.size} {o.kind} at {o.place}' for o in truths[i].objects)}")
    return judge(captions, truths)


def caption_scenes(config: EvaluateConfig, scenes: "Sequence[Scene]") -> list[str]:
    """Greedy captions of scenes, in float32, by the captioner's own engine; not cleaned."""
    import io

    import numpy as np
    from PIL import Image

    from captioner.engines.generation import GenerationSettings
    from captioner.engines.model_source import resolve_model
    from captioner.engines.transformers_engine import TransformersEngine
    from examples.openmoji.composition import render
    from examples.openmoji.llava_mini import PROMPTS
    from examples.openmoji.scene_files import jpeg_bytes

    settings = GenerationSettings(dtype="float32", batch_size=config.batch_size, max_new_tokens=128)
    engine = TransformersEngine(resolve_model(config.model), settings)
    images = [np.asarray(Image.open(io.BytesIO(jpeg_bytes(render(scene))))) for scene in scenes]
    keys = [str(scene.index) for scene in scenes]
    return [said.text for said in engine.caption(images, [PROMPTS[config.prompt]] * len(scenes), keys)]


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            EvaluateConfig,
            main,
            prog="python -m examples.openmoji.evaluate_captions",
            example="python -m examples.openmoji.evaluate_captions --count 1000",
        )
    )
