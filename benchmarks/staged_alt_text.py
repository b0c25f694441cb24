"""Judges what is drawn of bare alt texts ("owl icon") in the world of single objects: `python -m benchmarks.staged_alt_text`.

The style that networks trained on alt text know. Nothing but the kind is asked for, so that nothing else can be judged.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dataset_builder.command_line import run_command
from trainer.evaluate import main
from trainer.evaluation_config import BENCHMARKS, EvaluateConfig

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from examples.openmoji.checks import Reading
    from examples.openmoji.composition import Scene
    from trainer.evaluation import Benchmark

NAME = "openmoji_alt_text"
_IMAGES_PER_PROMPT = 2
_SCENES_PER_KIND = 50
"""How many scenes are looked at for texts: each kind has a few."""


def open_benchmark(config: EvaluateConfig) -> "Benchmark":
    """All alt texts of the world's kinds, with the judges of the benchmark openmoji."""
    from examples.openmoji.benchmark import WorldJudge
    from examples.openmoji.composition import render
    from examples.openmoji.llava_judge import llava_version, load_llava_reader
    from examples.openmoji.sprite_judge import VERSION
    from examples.openmoji.truth import TrueObject, Truth
    from trainer.evaluation import Benchmark, JudgeSource, Prompt, TrueImages

    scenes = _scenes_by_text(config)
    things = {text: TrueObject(kind=scene.objects[0].kind, size="", place="") for text, scene in scenes.items()}
    asked = {text: Truth(objects=(thing,), background_color="", pattern="") for text, thing in things.items()}
    return Benchmark(
        name=NAME,
        prompts=tuple(Prompt(text=text, category="object") for text in scenes),
        judges={
            "llava-mini": JudgeSource(version=llava_version(), load=lambda: WorldJudge(load_llava_reader(), asked)),
            "sprites": JudgeSource(version=VERSION, load=lambda: WorldJudge(_sprite_reader(), asked)),
        },
        metric_of={"object": "object"},
        num_images_per_prompt=_IMAGES_PER_PROMPT,
        true_images=TrueImages(
            of=lambda prompt: render(scenes[prompt.text]), others=lambda prompt: render(scenes[prompt.text])
        ),
    )


def _sprite_reader() -> "Callable[[Sequence[npt.NDArray[np.uint8]]], list[Reading]]":
    import numpy as np

    from examples.openmoji.sprite_judge import find_scenes, sprite_bank

    bank = sprite_bank()
    return lambda images: [scene.reading() for scene in find_scenes(np.stack(images), bank)]


def _scenes_by_text(config: EvaluateConfig) -> "dict[str, Scene]":
    """The first scene that has each alt text."""
    from examples.openmoji.composition import draw_scene
    from examples.openmoji.descriptions import describe
    from examples.openmoji.kinds import KIND_NAMES

    settings = config.openmoji
    num_kinds, seed = settings.num_kinds or len(KIND_NAMES), settings.prompt_seed
    scenes: dict[str, Scene] = {}
    for index in range(num_kinds * _SCENES_PER_KIND):
        scene = draw_scene(seed=seed, index=index, single_object=True, num_kinds=num_kinds)
        scenes.setdefault(describe(scene, seed=seed).alt_text, scene)
    return scenes


if __name__ == "__main__":
    BENCHMARKS[NAME] = "benchmarks.staged_alt_text"
    raise SystemExit(
        run_command(
            EvaluateConfig,
            main,
            prog="python -m benchmarks.staged_alt_text",
            example="python -m benchmarks.staged_alt_text --checkpoint mini --benchmark openmoji_alt_text --out evaluation",
        )
    )
