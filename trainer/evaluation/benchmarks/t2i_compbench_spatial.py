"""T2I-CompBench's score of a relation in space: .25 for each object's confidence, .5 for where they stand, zero below .5.

Source: Huang et al. 2023 (arXiv 2307.06350) and the authors' code. Deviation: the detector is not UniDet; and "on top of",
which their code reads and then scores as nothing, is "on the top of" here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from dataset_builder.concepts.tagger import ParsedText, Word
from trainer.evaluation.judges.detector import Box, Detection

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
"""Where the first object is, seen from the second: x to the right, y down."""
_PREPOSITIONS = {"on top of", "on bottom of", "on the left", "on the right", "next to", "on side of", "near"}
_PERSONS = {"girl", "boy", "man", "woman"}


@dataclass(frozen=True, kw_only=True)
class Relation:
    """What a prompt says of two objects."""

    first: str
    second: str
    words: str | None
    """One of the phrases that are known; None: a relation that cannot be checked."""


def relation_of(text: str, parsed: ParsedText, *, is_complex: bool) -> Relation | None:
    """The relation in a prompt: in a simple one, of its first and its last noun; None where there are no two objects."""
    nouns = [word.text for word in parsed.words if word.part_of_speech == "NOUN"]
    named = _around_prepositions(parsed.words) if is_complex else nouns[:1] + nouns[-1:]
    if len(named) != 2:
        return None
    first, second = ("person" if name in _PERSONS else name for name in named)
    return Relation(first=first, second=second, words=next((known for known in (*_BESIDE, *_TOWARDS) if known in text), None))


def spatial_score(found: Sequence[Detection], relation: Relation, *, side_px: int) -> float:
    """From 0 to 1, of what was found in an image whose shorter side is `side_px`; the surest first."""
    objects = [next((one for one in found if one.name == name), None) for name in (relation.first, relation.second)]
    score = sum(0.25 * one.confidence for one in objects if one)
    if objects[0] and objects[1]:
        first, second = (one.box.scaled(SIDE_PX / side_px) for one in objects if one)
        score += 0.5 * position_score(first, second, relation.words)
    return score if score >= LEAST_SCORE else 0.0


def position_score(first: Box, second: Box, words: str | None) -> float:
    """From 0 to 1: how far the first box stands to the second as the words say. Both are of an image of SIDE_PX."""
    right, down = (here - there for here, there in zip(first.centre, second.centre, strict=True))
    if words in _BESIDE:
        return 1.0 if min(abs(right), abs(down)) < NEAR_PX else NEAR_PX / max(abs(right), abs(down))
    if words not in _TOWARDS:
        return 0.0
    x, y = _TOWARDS[words]
    along, across = (right * x, down) if x else (down * y, right)
    if along <= abs(across):  # on the other side, or more beside than there
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
    """Without a common noun, the last of the first name's words."""
    nouns = [word.text for word in words if word.part_of_speech == "NOUN"]
    kinds = [(word.text, word.part_of_speech == "PROPN") for word in words]
    names = [text for (text, is_name), (_, goes_on) in pairwise(kinds) if is_name and not goes_on]
    return (nouns or names)[:1]
