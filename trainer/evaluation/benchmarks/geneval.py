"""The benchmark `geneval` of `trainer.evaluate`: objects, their number, colours and places, by a detector and CLIP.

Source: Ghosh et al. 2023 (arXiv 2310.11513) and the authors' code; the prompts are not ours to ship, see geneval_prompts.py.
Deviation: a zero-shot detector of transformers in place of Mask2Former, so the figures go by its name, as `geneval-owlv2`. It
gives boxes without masks: CLIP sees what else is in a box. Boxes of one object are merged, which Mask2Former does not need.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trainer.evaluation.benchmark import OVERALL, Benchmark, JudgeSource, Prompt, Published, Score, Verdict
from trainer.evaluation.benchmarks.geneval_prompts import COLORS, TASKS, Asked, Wanted, asked_of, our_prompts, read_prompts
from trainer.evaluation.config import EvaluateConfig, GenEvalConfig
from trainer.evaluation.judges.detector import Box, Detection, without_repeats
from trainer.evaluation.judges.models import JudgeModel, Placement, find_model, wanted_judges

if TYPE_CHECKING:
    import torch

    from trainer.evaluation.judges.clip import Clip
    from trainer.evaluation.judges.detector import Detect


Pixels = npt.NDArray[np.uint8]
VERSION = 1
"""Version of the rules; changes when verdicts may."""
CORRECT = "correct"
DETECTOR = "detector"
_PIXART = {
    "single_object": 0.98,
    "two_object": 0.50,
    "counting": 0.44,
    "colors": 0.80,
    "position": 0.08,
    "color_attr": 0.07,
    OVERALL: 0.48,
}
_SOURCE = "PixArt-α by GenEval (arXiv 2310.11513), as later papers list it"
_COLOR_TEXTS = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
MARGIN = 0.1
"""Share of the two objects' sizes together by which they must be apart in a direction for it to count."""
MAX_OBJECTS = 16
"""Maximum number of objects of a class, the surest."""
NameColors = Callable[[str, Sequence[Box]], list[str]]
"""The colour of each box of a class in the image at hand."""


def open_benchmark(config: EvaluateConfig) -> Benchmark:
    """Raises UserError for an incomplete folder, or a judge's model that is unavailable."""
    settings = config.geneval
    prompts = read_prompts(Path(settings.folder).expanduser()) if settings.folder else our_prompts()
    model = find_model(settings.detector, setting="geneval.detector")
    tasks = [task for task in TASKS if any(prompt.category == task for prompt in prompts)]
    return Benchmark(
        name=f"geneval-{model.model_type}",
        prompts=prompts,
        num_images_per_prompt=4,
        judges=wanted_judges(config, {DETECTOR: partial(_judge_source, config, model)}),
        metric_of=dict.fromkeys(tasks, CORRECT),
        overall=mean_over_tasks,
        published=tuple(_published(category, prompts, settings) for category in _PIXART),
    )


class ObjectJudge:
    """Whether an image shows all that its prompt says."""

    def __init__(self, detect: "Detect", colors: "ColorNames", settings: GenEvalConfig) -> None:
        self.detect = detect
        self.colors = colors
        self.settings = settings

    def __call__(self, images: Sequence[Pixels], prompts: Sequence[Prompt]) -> Iterator[Verdict]:
        """One by one."""
        for image, prompt in zip(images, prompts, strict=True):
            asked = asked_of(prompt.data)
            found = self._found(self.detect(image, asked.names), prompt.category)
            wrong = mistakes(found, asked, partial(self.colors, image))
            objects = [f"{name} {one.confidence:.2f}" for name, own in found.items() for one in own]
            seen = f"{'; '.join(wrong) or 'right'} ({', '.join(objects) or 'nothing found'})"
            yield Verdict(values={CORRECT: float(not wrong)}, seen=seen)

    def _found(self, found: Sequence[Detection], task: str) -> dict[str, list[Detection]]:
        """Objects by class, the most confident first."""
        least = self.settings.counting_threshold if task == "counting" else self.settings.threshold
        kept = without_repeats([one for one in found if one.confidence > least], max_overlap=self.settings.max_overlap)
        return {name: [one for one in kept if one.name == name][:MAX_OBJECTS] for name in {one.name: None for one in kept}}


class ColorNames:
    """Names the colour of what is in a box, by CLIP."""

    def __init__(self, clip: "Clip") -> None:
        self.clip = clip
        self._texts: dict[str, torch.Tensor] = {}

    def __call__(self, image: Pixels, name: str, boxes: Sequence[Box]) -> list[str]:
        """One of COLORS for each box of a class."""
        if name not in self._texts:
            self._texts[name] = self._embed_colors(name)
        likeness = self.clip.embed_images([_inside(image, box) for box in boxes]) @ self._texts[name].T  # (boxes, colours)
        return [COLORS[index] for index in likeness.argmax(dim=1).tolist()]

    def _embed_colors(self, name: str) -> "torch.Tensor":
        """The mean direction of each colour's texts, (colours, D)."""
        from torch.nn.functional import normalize

        texts = [text.format(color=color, name=name) for color in COLORS for text in _COLOR_TEXTS]
        return normalize(self.clip.embed_texts(texts).unflatten(0, (len(COLORS), -1)).mean(dim=1), dim=-1)


def mean_over_tasks(scores: Sequence[Score]) -> list[Score]:
    """GenEval's overall score: each task weighs the same."""
    return [
        Score(
            category=OVERALL,
            judge=judge,
            metric=CORRECT,
            num_images=sum(one.num_images for one in own),
            value=fmean(one.value for one in own),
        )
        for judge, own in _by_judge(scores).items()
    ]


def mistakes(found: Mapping[str, Sequence[Detection]], asked: Asked, name_colors: NameColors) -> list[str]:
    """Describes what is wrong, for the reader; empty if all is right. `found`: by class, the surest first."""
    wrong = []
    matched: list[Sequence[Detection] | None] = []
    for wanted in asked.include:
        own = found.get(wanted.name, ())[: wanted.count]
        mistake = _mistake(own, wanted, matched, name_colors)
        matched.append(None if mistake else own)
        wrong += [mistake] if mistake else []
    for name, count in asked.exclude:
        if (number := len(found.get(name, ()))) >= count:
            wrong.append(f"fewer than {count} of {name} wanted, {number} found")
    return wrong


def positions(first: Box, second: Box) -> set[str]:
    """Positions of the first box relative to the second: up to two of POSITIONS."""
    offset = [here - there for here, there in zip(first.centre, second.centre, strict=True)]
    sizes = [here + there for here, there in zip(first.size, second.size, strict=True)]
    clear = [math.copysign(max(abs(way) - MARGIN * size, 0.0), way) for way, size in zip(offset, sizes, strict=True)]
    if max(map(abs, clear)) < 1e-3:
        return set()
    right, down = (way / math.hypot(*offset) for way in clear)
    holds = {"left of": right < -0.5, "right of": right > 0.5, "above": down < -0.5, "below": down > 0.5}
    return {name for name, is_so in holds.items() if is_so}


def _by_judge(scores: Sequence[Score]) -> Mapping[str, list[Score]]:
    return {judge: [one for one in scores if one.judge == judge] for judge in {one.judge: None for one in scores}}


def _inside(image: Pixels, box: Box) -> Pixels:
    """The content of a box; at least a pixel."""
    height, width = image.shape[:2]
    left, top = (min(max(0, int(start)), side - 1) for start, side in ((box.left, width), (box.top, height)))
    return image[top : max(top + 1, int(box.bottom)), left : max(left + 1, int(box.right))]


def _judge_source(config: EvaluateConfig, model: JudgeModel) -> JudgeSource:
    from dataset_builder.scores.clip import resolve_clip

    settings = config.geneval
    clip = resolve_clip(settings.clip)

    def load() -> ObjectJudge:
        from trainer.evaluation.judges.clip import Clip
        from trainer.evaluation.judges.detector import load_detector

        placement = Placement.of(config)
        threshold = min(settings.threshold, settings.counting_threshold)
        return ObjectJudge(load_detector(model, placement, threshold=threshold), ColorNames(Clip(clip, placement)), settings)

    rules = (VERSION, config.judge_dtype, settings.threshold, settings.counting_threshold, settings.max_overlap)
    return JudgeSource(version=" ".join(map(str, (*rules, model.revision, clip.fingerprint))), load=load)


def _published(category: str, prompts: Sequence[Prompt], settings: GenEvalConfig) -> Published:
    """PixArt-α's figure, and its differences from ours."""
    wanted = sum(TASKS.values()) if category == OVERALL else TASKS[category]
    count = sum(category in (OVERALL, prompt.category) for prompt in prompts)
    differences = {
        "our own prompts": settings.folder is None,
        f"{count} prompts in place of {wanted}": settings.folder is not None and count != wanted,
        f"detector {settings.detector} in place of Mask2Former": True,
    }
    return Published(
        category=category,
        metric=CORRECT,
        value=_PIXART[category],
        source=_SOURCE,
        differences=tuple(text for text, holds in differences.items() if holds),
    )


def _mistake(
    own: Sequence[Detection], wanted: Wanted, matched: Sequence[Sequence[Detection] | None], name_colors: NameColors
) -> str:
    """Describes what is wrong with the objects of one class; "" if nothing is."""
    if len(own) < wanted.count:
        return f"{wanted.count} of {wanted.name} wanted, {len(own)} found"
    if wanted.color is not None:
        colors = name_colors(wanted.name, [one.box for one in own])
        if colors.count(wanted.color) < wanted.count:
            return f"{wanted.name} is {' and '.join(colors)}, not {wanted.color}"
    if wanted.position is None or wanted.target is None:
        return ""
    targets = matched[wanted.target]
    if targets is None:
        return f"nothing for {wanted.name} to be {wanted.position}"
    for target in targets:
        for one in own:
            if wanted.position not in positions(one.box, target.box):
                return f"{wanted.name} is not {wanted.position} {target.name}"
    return ""
