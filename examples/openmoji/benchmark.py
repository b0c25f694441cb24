"""The benchmark `openmoji`: prompts of the small world, and two judges that know nothing of each other.

    python -m trainer.evaluate --benchmark examples.openmoji.benchmark --checkpoint mini --out evaluation

llava-mini captions each image; the sprite judge matches the drawings. Both are held against what the prompt says by the same
checks, and both are asked about true scenes of the same prompts too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from examples.openmoji.backgrounds import IMAGE_SIZE_PX
from examples.openmoji.checks import VERSION as CHECKS_VERSION
from examples.openmoji.checks import Reading, check
from examples.openmoji.composition import render
from examples.openmoji.kinds import KIND_NAMES
from examples.openmoji.llava_judge import LlavaReader, llava_version, load_llava_reader
from examples.openmoji.prompts import CATEGORIES, WorldPrompt, draw_prompts
from examples.openmoji.sprite_judge import VERSION as SPRITES_VERSION
from examples.openmoji.sprite_judge import find_scenes, sprite_bank
from examples.openmoji.truth import Truth
from trainer.evaluation.benchmark import Benchmark, JudgeSource, Prompt, TrueImages, Verdict
from trainer.evaluation.config import EvaluateConfig, OpenMojiConfig

Pixels = npt.NDArray[np.uint8]
_METRICS = {category: category for category in CATEGORIES} | {"complex": "all"}


def open_benchmark(config: EvaluateConfig) -> Benchmark:
    """Prompts by config.openmoji. Raises UserError for a world that does not have that many."""
    settings = config.openmoji
    prompts = _draw(settings)
    more = _draw(replace(settings, prompt_seed=settings.prompt_seed + 1))
    scenes = {one.text: one.scene for one in prompts}
    others = {one.text: other.scene for one, other in zip(prompts, more, strict=True)}
    asked = {one.text: one.asked for one in prompts}
    reader = cache(load_llava_reader)
    return Benchmark(
        name="openmoji",
        prompts=tuple(
            Prompt(text=one.text, category=one.category, held_out=one.held_out, data=asdict(one.asked)) for one in prompts
        ),
        judges=world_judges(asked, reader),
        metric_of={one.category: _METRICS[one.category] for one in prompts},
        judge_dtype="float32",  # of llava-mini, so that what it says of an image does not depend on its batch
        own_seeds=True,  # else one noise would decide for all images of the benchmark
        true_images=TrueImages(
            of=lambda prompt: render(scenes[prompt.text]), others=lambda prompt: render(others[prompt.text])
        ),
        embeddings={"the vision tower of llava-mini": lambda: reader().embed},
    )


def sprite_reader(kinds: Sequence[str] = KIND_NAMES) -> Callable[[Sequence[Pixels]], list[Reading]]:
    """Reader of images (64, 64, 3) that matches the drawings of these kinds."""
    bank = sprite_bank(kinds)
    return lambda images: [scene.reading() for scene in find_scenes(np.stack(images), bank)]


def world_judges(asked: Mapping[str, Truth], reader: Callable[[], LlavaReader] = load_llava_reader) -> dict[str, JudgeSource]:
    """Both judges of images of the small world, by name; `asked` is what each prompt says, `reader` opens llava-mini."""
    return {
        "llava-mini": JudgeSource(version=f"{llava_version()} {CHECKS_VERSION}", load=lambda: WorldJudge(reader(), asked)),
        "sprites": JudgeSource(version=f"{SPRITES_VERSION} {CHECKS_VERSION}", load=lambda: WorldJudge(sprite_reader(), asked)),
    }


@dataclass(frozen=True)
class WorldJudge:
    """Holds what a reader makes of images against what their prompts say."""

    read: Callable[[Sequence[Pixels]], Sequence[Reading]]
    """Reads images (64, 64, 3)."""
    asked: Mapping[str, Truth]
    """Content of each prompt."""

    def __call__(self, images: Sequence[Pixels], prompts: Sequence[Prompt]) -> list[Verdict]:
        """Images of any size are scaled to that of the small world."""
        readings = self.read([_scaled(image) for image in images])
        return [self._verdict(reading, self.asked[prompt.text]) for reading, prompt in zip(readings, prompts, strict=True)]

    def _verdict(self, reading: Reading, asked: Truth) -> Verdict:
        values = check(reading.read, asked)
        of_two = {"all_of_two": values["all"]} if len(asked.objects) == 2 else {}
        return Verdict(values=values | of_two, seen=reading.seen)


def _draw(settings: OpenMojiConfig) -> tuple[WorldPrompt, ...]:
    return draw_prompts(
        count=settings.prompts_per_category,
        seed=settings.prompt_seed,
        style=settings.style,
        single_object=settings.single_objects,
        num_kinds=settings.num_kinds,
    )


def _scaled(image: Pixels) -> Pixels:
    side = (IMAGE_SIZE_PX, IMAGE_SIZE_PX)
    return image if image.shape[:2] == side else np.asarray(Image.fromarray(image).resize(side, Image.Resampling.BOX))
