"""The judges of T2I-CompBench: what each asks of an image, and the mean of three for the prompts of `complex`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dataset_builder.concepts.tagger import ParsedText, Word
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
from trainer.evaluation.judges.detector import Box, Detection

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
"""Judges by category, whose metric is the score."""
LEAST_SCORE = 0.5
SIDE_PX = 479
"""The shorter side that the authors' detector sees images at: distances are of this size."""
NEAR_PX = 150
MAX_OVERLAP = 0.1
_BESIDE = ("on side of", "next to", "near")
_TOWARDS = {
    "on the left of": (-1, 0),
    "on the right of": (1, 0),
    "on the bottom of": (0, 1),
    "on the top of": (0, -1),
    "on top of": (0, -1),
}
"""Directions from the second object to the first: x to the right, y down."""
_PREPOSITIONS = {"on top of", "on bottom of", "on the left", "on the right", "next to", "on side of", "near"}
_PERSONS = {"girl", "boy", "man", "woman"}


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


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A prompt's statement about two objects."""

    first: str
    second: str
    words: str | None
    """One of the phrases that are known; None: a relation that cannot be checked."""


class SpatialJudge:
    """Positions at which a detector finds the two objects of a prompt."""

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
        """Scores all images in one batch."""
        texts = [compared_text(prompt, self.parsed) for prompt in prompts]
        cosines = zip(self.clip.cosines(images, texts), texts, strict=True)
        return [Verdict(values={METRICS[CLIP]: cosine}, seen=text) for cosine, text in cosines]


def asked_chunks(parsed: ParsedText) -> list[str]:
    """The noun chunks of a prompt that BLIP is asked about."""
    return [chunk for chunk in parsed.noun_chunks if chunk not in NO_THINGS][:MAX_CHUNKS]


def compared_text(prompt: Prompt, parsed: Mapping[str, ParsedText]) -> str:
    """Texts that CLIP compares an image with."""
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


def relation_of(text: str, parsed: ParsedText, *, is_complex: bool) -> Relation | None:
    """The relation in a prompt: in a simple one, of its first and its last noun; None if there are no two objects."""
    nouns = [word.text for word in parsed.words if word.part_of_speech == "NOUN"]
    named = _around_prepositions(parsed.words) if is_complex else nouns[:1] + nouns[-1:]
    if len(named) != 2:
        return None
    first, second = ("person" if name in _PERSONS else name for name in named)
    return Relation(first=first, second=second, words=next((known for known in (*_BESIDE, *_TOWARDS) if known in text), None))


def spatial_score(found: Sequence[Detection], relation: Relation, *, side_px: int) -> float:
    """Score from 0 to 1 of the objects found in an image whose shorter side is `side_px`; the surest first."""
    objects = [next((one for one in found if one.name == name), None) for name in (relation.first, relation.second)]
    score = sum(0.25 * one.confidence for one in objects if one)
    if objects[0] and objects[1]:
        first, second = (one.box.scaled(SIDE_PX / side_px) for one in objects if one)
        score += 0.5 * position_score(first, second, relation.words)
    return score if score >= LEAST_SCORE else 0.0


def position_score(first: Box, second: Box, words: str | None) -> float:
    """Score from 0 to 1: how well the first box is where the words say, seen from the second; in an image of SIDE_PX."""
    right, down = (here - there for here, there in zip(first.centre, second.centre, strict=True))
    if words in _BESIDE:
        return 1.0 if min(abs(right), abs(down)) < NEAR_PX else NEAR_PX / max(abs(right), abs(down))
    if words not in _TOWARDS:
        return 0.0
    x, y = _TOWARDS[words]
    along, across = (right * x, down) if x else (down * y, right)
    if along <= abs(across):  # on the other side, or more to the side than there
        return 0.0
    overlap = first.overlap(second)
    return 1.0 if overlap < MAX_OVERLAP else MAX_OVERLAP / overlap


def _around_prepositions(words: Sequence[Word]) -> list[str]:
    """The nouns before and after each preposition of place."""
    objects = []
    for start in range(len(words)):
        for length in (3, 2, 1):
            if " ".join(word.text for word in words[start : start + length]) in _PREPOSITIONS:
                objects += _last_noun(words[:start]) + _first_noun(words[start + length :])
                break
    return objects


def _last_noun(words: Sequence[Word]) -> list[str]:
    return [word.text for word in words if word.part_of_speech in ("NOUN", "PROPN")][-1:]


def _first_noun(words: Sequence[Word]) -> list[str]:
    """The first noun; without a common noun, the last word of the first name."""
    nouns = [word.text for word in words if word.part_of_speech == "NOUN"]
    kinds = [(word.text, word.part_of_speech == "PROPN") for word in words]
    names = [text for (text, is_name), (_, goes_on) in pairwise(kinds) if is_name and not goes_on]
    return (nouns or names)[:1]
