"""The prompts of WISE from the user's own copy of its repository, or a few of our own; each with what a right image shows.

Source: WISE (arXiv 2503.07265) and its repository PKU-YuanGroup/WISE: WISE_legacy/data and data_verified, three files each, a
JSON list of objects; the number of a prompt says its category.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from foundry.errors import UserError
from trainer.evaluation.benchmark import Prompt

CATEGORIES = ("culture", "time", "space", "biology", "physics", "chemistry")
_FIELDS = {"Prompt": "text", "Explanation": "explanation", "Subcategory": "subcategory"}
_LACKS = "--wise.folder: give a whole copy of the repository of WISE, which is"


@dataclass(frozen=True, kw_only=True)
class WiseFiles:
    """Where an edition of WISE keeps its prompts."""

    folders: tuple[str, ...]
    """Inside the repository, the first that there is."""
    names: tuple[str, str, str]
    """Of the files: culture, time and space, the sciences."""
    last_ids: Mapping[str, int]
    """The number of the last prompt of each category, in their order; the first one is 1."""

    def category(self, prompt_id: int) -> str:
        """The category of a prompt."""
        return next(category for category in CATEGORIES if prompt_id <= self.last_ids[category])

    def ids(self, name: str) -> range:
        """The numbers of a file's prompts."""
        ends = (0, *(self.last_ids[category] for category in ("culture", "space", "chemistry")))
        place = self.names.index(name)
        return range(ends[place] + 1, ends[place + 1] + 1)


OWN: Mapping[str, tuple[tuple[str, str], ...]] = {
    "culture": (
        ("the vegetable that gets a carved face at the end of October", "A hollowed pumpkin with a face cut into it."),
        ("a round dish from Naples in the colours of the Italian flag", "A pizza with tomatoes, mozzarella and basil."),
    ),
    "time": (
        ("an oak tree in Germany in the middle of January", "A bare oak without leaves, in winter light; snow is possible."),
        ("a harbour far north of the Arctic Circle at midnight in June", "The sun above the horizon: a harbour in daylight."),
    ),
    "space": (
        ("a red ball in front of a mirror, seen from behind the ball", "The ball and its reflection in the mirror."),
        ("what stands behind the Great Sphinx", "The Sphinx with the pyramids of Giza behind it."),
    ),
    "biology": (
        ("what has become of a tadpole a year later, sitting by a pond", "A grown frog or toad with four legs and no tail."),
        ("a hare of the high Arctic in winter", "A hare with white fur, in snow."),
    ),
    "physics": (
        ("an ice cube and an iron nail in a glass of water", "The ice floats at the surface, the nail lies on the bottom."),
        ("a narrow beam of sunlight that has passed a glass prism", "A spectrum: the colours of the rainbow in their order."),
    ),
    "chemistry": (
        ("an iron gate after twenty years of rain without paint", "A gate covered with reddish brown rust."),
        ("a candle a minute after a glass was put over it", "A candle under a glass, its flame gone out."),
    ),
}
"""Prompts with what a right image shows, for a first try."""


def own_prompts() -> tuple[Prompt, ...]:
    """A few prompts of each category, none of them WISE's."""
    rows = [(category, text, right) for category in CATEGORIES for text, right in OWN[category]]
    return tuple(
        Prompt(text=text, category=category, data={"prompt_id": number, "explanation": right, "subcategory": "own"})
        for number, (category, text, right) in enumerate(rows, 1)
    )


def read_prompts(folder: str, files: WiseFiles) -> tuple[Prompt, ...]:
    """All prompts of an edition, in the order of their numbers. Raises UserError that names what is missing or wrong."""
    root = Path(folder).expanduser()
    place = next((root / name for name in files.folders if (root / name / files.names[0]).is_file()), root / files.folders[0])
    prompts = [prompt for name in files.names for prompt in _read(place / name, files, name)]
    return tuple(sorted(prompts, key=lambda prompt: int(prompt.data["prompt_id"])))


def first_of_each(prompts: Iterable[Prompt], count: int | None) -> tuple[Prompt, ...]:
    """The first `count` prompts of each category; None: all."""
    by_category = defaultdict(list)
    for prompt in prompts:
        by_category[prompt.category].append(prompt)
    return tuple(prompt for own in by_category.values() for prompt in islice(own, count))


def _read(path: Path, files: WiseFiles, name: str) -> list[Prompt]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {_LACKS} not here") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): {_LACKS} damaged here") from error
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of prompts, found {type(rows).__name__}")
    prompts = [_prompt(row, f"{path}, row {number}", files) for number, row in enumerate(rows, 1)]
    found, expected = [prompt.data["prompt_id"] for prompt in prompts], files.ids(name)
    if sorted(found) != list(expected):
        missing = sorted(set(expected) - set(found))
        lacking = f"lacks prompt {missing[0]} and {len(missing) - 1} others" if missing else "has prompts that are not its own"
        raise UserError(f"{path} {lacking} of {expected[0]} to {expected[-1]}: {_LACKS} another edition or damaged here")
    return prompts


def _prompt(row: Any, where: str, files: WiseFiles) -> Prompt:
    number = row.get("prompt_id") if isinstance(row, dict) else None
    if not isinstance(number, int) or not 1 <= number <= files.last_ids[CATEGORIES[-1]]:
        raise UserError(f"{where}: expected an object with a prompt_id from 1 to 1000, found {str(row)[:80]}")
    texts = {name: row.get(field) for field, name in _FIELDS.items()}
    if lacking := [field for field, name in _FIELDS.items() if not (isinstance(texts[name], str) and texts[name].strip())]:
        raise UserError(f"{where}: expected text in {lacking[0]}, found {row.get(lacking[0])!r}")
    text = texts.pop("text").strip()
    return Prompt(text=text, category=files.category(number), data={"prompt_id": number, **texts})
