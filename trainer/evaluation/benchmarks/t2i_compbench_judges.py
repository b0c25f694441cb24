"""The judges of T2I-CompBench: what each asks of an image, and the mean of three for the prompts of `complex`."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dataset_builder.concepts.tagger import ParsedText
from trainer.evaluation.benchmark import Prompt, Verdict
from trainer.evaluation.benchmarks.t2i_compbench_prompts import (
    ATTRIBUTES,
    BLIP,
    CLIP,
    COMPLEX,
    DETECTOR,
    NON_SPATIAL,
    PARTS,
    SPATIAL,
)
from trainer.evaluation.benchmarks.t2i_compbench_spatial import Relation, spatial_score

if TYPE_CHECKING:
    from trainer.evaluation.judges.blip import BlipVqa
    from trainer.evaluation.judges.clip import Clip
    from trainer.evaluation.judges.detector import Detect

Pixels = npt.NDArray[np.uint8]

MAX_CHUNKS = 8
NO_THINGS = ("top", "the side", "the left", "the right")
"""Noun chunks that name a place and nothing to look for."""
THREE_IN_ONE = "3-in-1"
METRICS = {BLIP: "blip_vqa", DETECTOR: "spatial_not_unidet", CLIP: "clip_similarity", THREE_IN_ONE: "complex"}
JUDGE_OF = {**dict.fromkeys(ATTRIBUTES, BLIP), SPATIAL: DETECTOR, NON_SPATIAL: CLIP, COMPLEX: THREE_IN_ONE}
"""By category: whose metric its score is."""


class AttributeJudge:
    """The product over a prompt's noun chunks of how surely BLIP sees them."""

    def __init__(self, blip: "BlipVqa", parsed: Mapping[str, ParsedText]) -> None:
        self.blip = blip
        self.parsed = parsed

    def __call__(self, images: Sequence[Pixels], prompts: Sequence[Prompt]) -> Iterator[Verdict]:
        """One by one."""
        for image, prompt in zip(images, prompts, strict=True):
            chunks = asked_chunks(self.parsed[prompt.text])
            probabilities = self.blip.yes_probabilities(image, [f"{chunk}?" for chunk in chunks])
            seen = ", ".join(f"{chunk}: {value:.2f}" for chunk, value in zip(chunks, probabilities, strict=True))
            yield Verdict(values={METRICS[BLIP]: prod(probabilities)}, seen=seen or "no noun chunk to ask about")


class SpatialJudge:
    """Where a detector finds the two objects of a prompt."""

    def __init__(self, detect: "Detect", relations: Mapping[tuple[str, str], Relation | None]) -> None:
        self.detect = detect
        self.relations = relations

    def __call__(self, images: Sequence[Pixels], prompts: Sequence[Prompt]) -> Iterator[Verdict]:
        """One by one; zero for a prompt that names no two objects, as in the authors' code."""
        for image, prompt in zip(images, prompts, strict=True):
            relation = self.relations[prompt.category, prompt.text]
            score, seen = self._score(image, relation) if relation else (0.0, "no two objects in the prompt")
            yield Verdict(values={METRICS[DETECTOR]: score}, seen=seen)

    def _score(self, image: Pixels, relation: Relation) -> tuple[float, str]:
        found = self.detect(image, sorted({relation.first, relation.second}))
        boxes = [f"{one.name} {one.confidence:.2f} at {one.box.centre[0]:.0f}, {one.box.centre[1]:.0f}" for one in found]
        score = spatial_score(found, relation, side_px=min(image.shape[:2]))
        return score, f"{relation.first} {relation.words} {relation.second}? {', '.join(boxes) or 'nothing found'}"


class SimilarityJudge:
    """CLIP's cosine of image and prompt; of the prompts of `complex`, without their adjectives."""

    def __init__(self, clip: "Clip", parsed: Mapping[str, ParsedText]) -> None:
        self.clip = clip
        self.parsed = parsed

    def __call__(self, images: Sequence[Pixels], prompts: Sequence[Prompt]) -> list[Verdict]:
        """In one batch."""
        texts = [compared_text(prompt, self.parsed) for prompt in prompts]
        cosines = zip(self.clip.cosines(images, texts), texts, strict=True)
        return [Verdict(values={METRICS[CLIP]: cosine}, seen=text) for cosine, text in cosines]


def asked_chunks(parsed: ParsedText) -> list[str]:
    """The noun chunks of a prompt that BLIP is asked about."""
    return [chunk for chunk in parsed.noun_chunks if chunk not in NO_THINGS][:MAX_CHUNKS]


def compared_text(prompt: Prompt, parsed: Mapping[str, ParsedText]) -> str:
    """What CLIP compares an image with."""
    if prompt.category != COMPLEX:
        return prompt.text
    return " ".join(word.text for word in parsed[prompt.text].words if word.part_of_speech != "ADJ")


def three_in_one(prompt: Prompt, verdicts: Mapping[str, Verdict]) -> Verdict | None:
    """The mean of the parts that apply to a prompt of `complex`; None without one of them."""
    parts: Sequence[str] = prompt.data.get(PARTS, ())
    if not parts or any(part not in verdicts for part in parts):
        return None
    values = {METRICS[part]: verdicts[part].values[METRICS[part]] for part in parts}
    seen = ", ".join(f"{metric} {value:.2f}" for metric, value in values.items())
    return Verdict(values={METRICS[THREE_IN_ONE]: fmean(values.values())}, seen=seen)
