"""Comparison as a table on the terminal and as a line of JSON."""

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from captioner.comparison.candidates import Candidate, short_names
from captioner.comparison.costs import RunCost
from captioner.comparison.measures import Estimate, Figure

_TITLE_WIDTH, _WIDTH = 33, 19

EXPLANATIONS = (
    (
        "Only images that all have captioned count. VN: nouns that appear more than 10 times; DN: different nouns; both grow "
        "with the number of images. * marks a difference of more than two standard errors: of twenty lines without a real "
        "difference, one will have it."
    ),
    (
        "A noun that another captioner names too is rarely invented, but captioners of one family invent alike, longer "
        "captions name more that others leave out, and between two alone agreement cannot tell which of them is wrong."
    ),
    "Log-probabilities compare prompts of one model, not models: their tokens differ.",
)
"""Notes on what the figures mean, and what they cannot tell."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that was found out."""

    candidates: Sequence[Candidate]
    num_images: int
    """Images that all candidates captioned."""
    num_captions: Sequence[int]
    """Captions with text of each candidate."""
    num_without_text: Sequence[int]
    """Captions of each candidate that were refused or empty."""
    figures: Sequence[Figure]
    costs: Sequence[RunCost]
    notes: Sequence[str]


def comparison_text(found: Comparison) -> str:
    """The whole answer; 110 columns wide for three candidates."""
    candidates = found.candidates
    letters = [one.letter for one in candidates]
    blocks = [
        _candidates(found),
        _block(f"Means over the same images, ± standard error ({found.num_images:,} images unless said)", letters, found),
        _differences(found),
        _costs(found.costs),
    ]
    notes = [textwrap.fill(note, 118, break_long_words=False) for note in (*found.notes, *EXPLANATIONS)]
    return "\n\n".join([*(block for block in blocks if block), "\n".join(notes)])


def comparison_json(found: Comparison) -> str:
    """All figures in one line; differences for each two candidates, the second minus the first."""
    letters = [one.letter for one in found.candidates]
    counts = zip(found.candidates, found.num_captions, found.num_without_text, strict=True)
    answer = {
        "num_images": found.num_images,
        "candidates": [
            {"letter": one.letter, "run": one.source, "run_id": one.files.record.run_id, "prompt": one.prompt}
            | {"model": one.model, "num_captions": captions, "num_without_text": without}
            for one, captions, without in counts
        ],
        "figures": {
            figure.name: {
                "title": figure.title,
                "num_images": figure.num_images,
                "values": {
                    letter: asdict(value) if value else None for letter, value in zip(letters, figure.values, strict=True)
                },
                "differences": [
                    {"of": letters[other], "to": letters[one], **asdict(difference)}
                    for (one, other), difference in figure.differences.items()
                ],
            }
            for figure in found.figures
        },
        "runs": [asdict(cost) | {"tokens_per_s": cost.tokens_per_s} for cost in found.costs],
        "notes": list(found.notes),
    }
    return json.dumps(answer)


def shown(estimate: Estimate | None, *, is_share: bool, is_difference: bool = False) -> str:
    """`61.2 ± 0.4`: as many digits as the error has meaning for; shares in percent; a clear difference with a star."""
    if estimate is None:
        return "-"
    factor = 100 if is_share else 1
    value, error = factor * estimate.value, None if estimate.error is None else factor * estimate.error
    digits = 0 if value == int(value) else 2
    if error:
        digits = min(4, max(0, 1 - math.floor(math.log10(error))))
    sign = "+" if is_difference else ""
    text = f"{value:{sign},.{digits}f}"
    star = " *" if is_difference and estimate.is_clear else ""
    return f"{text} ± {error:,.{digits}f}{star}" if error is not None else text


def candidate_rows(found: Comparison) -> list[list[str | int]]:
    """Letter, run and prompt, model, captions, captions without text, and captions that are not compared."""
    names = short_names(found.candidates)
    return [
        [one.letter, name, one.model, captions, without, captions - found.num_images]
        for one, name, captions, without in zip(
            found.candidates, names, found.num_captions, found.num_without_text, strict=True
        )
    ]


def cost_rows(costs: Sequence[RunCost]) -> list[list[str]]:
    """Run, images, tokens of an image, tokens read, images/s and tokens/s of a replica, its hours, price, hardware."""
    return [
        [
            cost.source.rstrip("/").rpartition("/")[2],
            f"{cost.num_images:,}",
            _number(cost.tokens_per_image),
            _number(cost.input_tokens_per_image),
            _number(cost.images_per_s),
            _number(cost.tokens_per_s),
            _number(None if cost.replica_seconds is None else cost.replica_seconds / 3600),
            _number(cost.cost_per_1000),
            cost.hardware or "-",
        ]
        for cost in costs
    ]


COST_COLUMNS = ("run", "images", "written", "read", "images/s", "tokens/s", "hours", "cost/1000", "hardware")


def _candidates(found: Comparison) -> str:
    lines = [f"{'':2} {'run and prompt':40} {'captions':>10} {'no text':>9} {'not compared':>13}  model"]
    for letter, name, model, captions, without, rest in candidate_rows(found):
        lines.append(f"{letter:2} {_fitted(str(name), 40)} {captions:>10,} {without:>9,} {rest:>13,}  {model}")
    return "\n".join(lines)


def _block(title: str, letters: Sequence[str], found: Comparison) -> str:
    lines = [title, f"{'':{_TITLE_WIDTH}}{''.join(f'{letter:>{_WIDTH}}' for letter in letters)}"]
    if len(letters) == 2:
        lines[-1] += f"{'B - A':>{_WIDTH}}"
    for figure in found.figures:
        cells = [shown(value, is_share=figure.is_share) for value in figure.values]
        if len(letters) == 2:
            cells.append(_difference(figure, 1))
        lines.append(_line(figure, found, cells))
    return "\n".join(lines)


def _differences(found: Comparison) -> str:
    """The paired differences to the first candidate, where there are more than two."""
    others = range(1, len(found.candidates))
    if len(others) == 1:
        return ""
    heads = "".join(f"{f'{found.candidates[other].letter} - A':>{_WIDTH}}" for other in others)
    lines = ["Paired differences to A, ± standard error", f"{'':{_TITLE_WIDTH}}{heads}"]
    lines += [_line(figure, found, [_difference(figure, other) for other in others]) for figure in found.figures]
    return "\n".join(lines)


def _difference(figure: Figure, other: int) -> str:
    return shown(figure.differences.get((0, other)), is_share=figure.is_share, is_difference=True)


def _line(figure: Figure, found: Comparison, cells: Sequence[str]) -> str:
    number = "" if figure.num_images == found.num_images else f"  ({figure.num_images:,} images)"
    return f"{figure.title:{_TITLE_WIDTH}}{''.join(f'{cell:>{_WIDTH}}' for cell in cells)}{number}"


def _costs(costs: Sequence[RunCost]) -> str:
    lines = [
        "Cost of whole runs, all prompts: tokens written and read per image, a replica's speed and hours, price of 1,000 images"
    ]
    lines.append(_cost_line(COST_COLUMNS))
    lines += [_cost_line(row) for row in cost_rows(costs)]
    return "\n".join(lines)


def _cost_line(cells: Sequence[str]) -> str:
    numbers = "".join(f"{cell:>10}" for cell in cells[1:-1])
    return f"{_fitted(cells[0], 24)}{numbers}  {cells[-1]}".rstrip()


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _fitted(name: str, width: int) -> str:
    return f"{name:{width}}" if len(name) <= width else f"{name[: width // 2 - 1]}…{name[-width // 2 :]}"
