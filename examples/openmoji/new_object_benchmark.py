"""The benchmark `new_object`: an object that the shipped network never saw, asked for where its pictures did not show it.

    python -m trainer.evaluate --benchmark examples.openmoji.new_object_benchmark --checkpoint mini --lora RUN --out OUT

The sprite judge, which knows the object too, looks for it, its place and the background.
"""

from dataclasses import asdict, replace

from examples.openmoji.benchmark import WorldJudge, sprite_reader
from examples.openmoji.checks import VERSION as CHECKS_VERSION
from examples.openmoji.composition import Scene, render
from examples.openmoji.kinds import KIND_NAMES, NEW_KIND
from examples.openmoji.new_object_scenes import asked_scenes, prompt_of
from examples.openmoji.sprite_judge import VERSION as SPRITES_VERSION
from examples.openmoji.truth import Truth, truth_of
from trainer.evaluation.benchmark import Benchmark, JudgeSource, Prompt, TrueImages
from trainer.evaluation.config import EvaluateConfig

_PROMPTS = 48


def open_benchmark(_config: EvaluateConfig) -> Benchmark:
    """48 prompts, each with what must be seen."""
    scenes = {prompt_of(scene): scene for scene in asked_scenes(_PROMPTS)}
    asked = {text: _stated(scene) for text, scene in scenes.items()}
    texts = list(scenes)
    others = dict(zip(texts, texts[1:] + texts[:1], strict=True))
    return Benchmark(
        name="new_object",
        prompts=tuple(
            Prompt(text=text, category="new object", held_out=True, data=asdict(truth)) for text, truth in asked.items()
        ),
        judges={
            "sprites": JudgeSource(
                version=f"{SPRITES_VERSION} {CHECKS_VERSION} {NEW_KIND.name}",
                load=lambda: WorldJudge(sprite_reader((*KIND_NAMES, NEW_KIND.name)), asked),
            )
        },
        metric_of={"new object": "object"},
        own_seeds=True,
        true_images=TrueImages(
            of=lambda prompt: render(scenes[prompt.text]), others=lambda prompt: render(scenes[others[prompt.text]])
        ),
    )


def _stated(scene: Scene) -> Truth:
    """Facts that all prompts state: the object, its place and the background; some say its size, which is not asked."""
    truth = truth_of(scene)
    return replace(truth, objects=tuple(replace(thing, size="") for thing in truth.objects))
