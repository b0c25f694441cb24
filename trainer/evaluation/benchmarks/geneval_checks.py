"""Whether what was found in an image is what a prompt of GenEval asks for.

Source: Ghosh et al. 2023 (arXiv 2310.11513) and the authors' code: of each class the surest objects count, as many as are asked
for; colours and places are looked at on those alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from trainer.evaluation.benchmarks.geneval_prompts import Asked, Wanted
from trainer.evaluation.judges.detector import Box, Detection

MARGIN = 0.1
"""Of the two objects' sizes together: they have to be so far apart in a direction for it to count."""
MAX_OBJECTS = 16
"""Of a class, the surest."""

NameColors = Callable[[str, Sequence[Box]], list[str]]
"""The colour of each box of a class in the image at hand."""


def mistakes(found: Mapping[str, Sequence[Detection]], asked: Asked, name_colors: NameColors) -> list[str]:
    """What is wrong, for the reader; nothing: all is right. `found`: by class, the surest first."""
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


def _mistake(
    own: Sequence[Detection], wanted: Wanted, matched: Sequence[Sequence[Detection] | None], name_colors: NameColors
) -> str:
    """What is wrong with the objects of one class, or ""."""
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


def positions(first: Box, second: Box) -> set[str]:
    """Where the first box is, seen from the second: up to two of POSITIONS."""
    offset = [here - there for here, there in zip(first.centre, second.centre, strict=True)]
    sizes = [here + there for here, there in zip(first.size, second.size, strict=True)]
    clear = [math.copysign(max(abs(way) - MARGIN * size, 0.0), way) for way, size in zip(offset, sizes, strict=True)]
    if max(map(abs, clear)) < 1e-3:
        return set()
    right, down = (way / math.hypot(*offset) for way in clear)
    holds = {"left of": right < -0.5, "right of": right > 0.5, "above": down < -0.5, "below": down > 0.5}
    return {name for name, is_so in holds.items() if is_so}
