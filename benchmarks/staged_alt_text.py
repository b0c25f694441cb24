"""The benchmark `openmoji_alt_text`: bare alt texts ("owl icon") in the world of single objects.

    python -m trainer.evaluate --benchmark benchmarks.staged_alt_text --checkpoint mini --out evaluation

The style that networks trained on alt text know. Nothing but the kind is asked for, so that nothing else can be judged.
"""

from typing import TYPE_CHECKING

from trainer.evaluation.config import EvaluateConfig

if TYPE_CHECKING:
    from examples.openmoji.composition import Scene
    from trainer.evaluation.benchmark import Benchmark

NAME = "openmoji_alt_text"
_IMAGES_PER_PROMPT = 2
_SCENES_PER_KIND = 50
"""Number of scenes searched for texts: each kind has a few, and each text several scenes."""


def open_benchmark(config: EvaluateConfig) -> "Benchmark":
    """All alt texts of the world's kinds, with the judges of the benchmark openmoji."""
    from dataclasses import asdict

    from examples.openmoji.benchmark import world_judges
    from examples.openmoji.composition import render
    from examples.openmoji.truth import TrueObject, Truth
    from trainer.evaluation.benchmark import Benchmark, Prompt, TrueImages

    scenes = _scenes_by_text(config)
    things = {text: TrueObject(kind=found[0].objects[0].kind, size="", place="") for text, found in scenes.items()}
    asked = {text: Truth(objects=(thing,), background_color="", pattern="") for text, thing in things.items()}
    return Benchmark(
        name=NAME,
        prompts=tuple(Prompt(text=text, category="object", data=asdict(truth)) for text, truth in asked.items()),
        judges=world_judges(asked),
        metric_of={"object": "object"},
        num_images_per_prompt=_IMAGES_PER_PROMPT,
        own_seeds=True,
        true_images=TrueImages(
            of=lambda prompt: render(scenes[prompt.text][0]), others=lambda prompt: render(scenes[prompt.text][-1])
        ),
    )


def _scenes_by_text(config: EvaluateConfig) -> "dict[str, list[Scene]]":
    """The scenes that have each alt text."""
    from examples.openmoji.composition import draw_scene
    from examples.openmoji.descriptions import describe
    from examples.openmoji.kinds import KIND_NAMES

    settings = config.openmoji
    num_kinds, seed = settings.num_kinds or len(KIND_NAMES), settings.prompt_seed
    scenes: dict[str, list[Scene]] = {}
    for index in range(num_kinds * _SCENES_PER_KIND):
        scene = draw_scene(seed=seed, index=index, single_object=True, num_kinds=num_kinds)
        scenes.setdefault(describe(scene, seed=seed).alt_text, []).append(scene)
    return scenes
