"""Prose of a structured caption, for training that reads sentences: templates, and keys that a seed drops or shuffles.

An object with a description (`desc`, `description`, `label` or `name`) is told by it, with its place and the text on it; then
come its other members. The place is that of the centre of its box: a `bbox` [y0, x0, y1, x1] or a `bbox_2d` [x0, y0, x1, y1],
in 0..1000, or in 0..1 where no number is above 1. Of other members a text that ends as a sentence is taken as it is, and a
shorter one gets a template with its key. Boxes, colours as hex codes and labels (`type`) are left out: nobody writes them. The
first key of the whole, a summary in most schemas, is never dropped.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dataset_builder.json_text import BOXES, DESCRIPTIONS, HEX_COLOR, LABELS

_WHOLE_SHARE, _DROPPED_SHARE, _SHUFFLED_SHARE = 0.5, 0.25, 0.5
"""Share of the captions that keep all keys; share of the keys that the others drop; share whose keys are shuffled."""
_MEMBERS = ("{name}: {value}.", "The {name}: {value}.", "{value} ({name}).")
_PLACED = ("{thing} is {place}.", "{place} is {thing}.", "{place}: {thing}.")
_WRITTEN = (' It says "{text}".', ' The words on it: "{text}".', ' The text "{text}" is written there.')
_PLACES = (
    ("in the top left corner", "at the top", "in the top right corner"),
    ("on the left", "in the center", "on the right"),
    ("in the bottom left corner", "at the bottom", "in the bottom right corner"),
)
_UNTOLD = frozenset([*BOXES, *LABELS])
_MOST = 1000
"""The bottom and right edges of the image, in the numbers of a box."""
_THIRDS = (_MOST / 3, 2 * _MOST / 3)
_FULL = 850
"""Sides of a box above which it has no place: it fills the image."""
_FINISHED = re.compile(r"[.!?…][\"'”’)]*$")


def prose(value: Mapping[str, Any], *, seed: int) -> str:
    """A structured caption as sentences. The same value and seed give the same text; "" for a value without words."""
    rng = random.Random(seed)
    style = _Style(
        template=rng.randrange(len(_MEMBERS)), is_whole=rng.random() < _WHOLE_SHARE, is_shuffled=rng.random() < _SHUFFLED_SHARE
    )
    return " ".join(_sentences(value, "", style, rng, num_sure=1))


@dataclass(frozen=True, kw_only=True)
class _Style:
    """Choices that hold for a whole caption."""

    template: int
    is_whole: bool
    is_shuffled: bool


def _sentences(value: Any, name: str, style: _Style, rng: random.Random, *, num_sure: int = 0) -> Iterator[str]:
    """The sentences of a member of this name; of an object, the first `num_sure` keys with words are not dropped."""
    if isinstance(value, dict):
        described = _described(value)
        if described:
            yield _thing(value, described, style)
        for key in _kept(value, described, style, rng, num_sure=0 if described else num_sure):
            yield from _sentences(value[key], key, style, rng)
    elif isinstance(value, list) and not all(isinstance(item, str) for item in value):
        for item in value:
            yield from _sentences(item, name, style, rng)
    elif text := _text(value):
        is_sentence = " " in text and _FINISHED.search(text)
        yield _finished(text) if is_sentence else _member(name, text, style.template if isinstance(value, str | list) else 0)


def _described(value: Mapping[str, Any]) -> str:
    """The key of an object's description; "" if it has none."""
    return next((key for key in DESCRIPTIONS if isinstance(value.get(key), str) and _text(value[key])), "")


def _kept(value: Mapping[str, Any], described: str, style: _Style, rng: random.Random, *, num_sure: int) -> list[str]:
    """The keys that are told, after the description if there is one; at least one of those with words.

    The first of them leads also where they are shuffled.
    """
    said = {described, "text"} if described and isinstance(value.get("text"), str) else {described}
    told = [key for key in value if key not in _UNTOLD | said and _has_words(value[key])]
    kept = [
        key for index, key in enumerate(told) if style.is_whole or index < num_sure or rng.random() >= _DROPPED_SHARE
    ] or told[:1]
    return [*kept[:1], *rng.sample(kept[1:], len(kept[1:]))] if style.is_shuffled else kept


def _has_words(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_words(member) for key, member in value.items() if key not in _UNTOLD)
    return any(map(_has_words, value)) if isinstance(value, list) else bool(_text(value))


def _thing(value: Mapping[str, Any], described: str, style: _Style) -> str:
    """The sentence about an object with a description, its place and the words on it."""
    thing = _text(value[described]).rstrip(".")
    place = next((place for key in BOXES if (place := _place(value.get(key), BOXES[key]))), "")
    said = _PLACED[style.template].format(thing=thing, place=place) if place and thing else _finished(thing)
    written = _text(value["text"]) if isinstance(value.get("text"), str) else ""
    return _capitalised(said) + (_WRITTEN[style.template].format(text=written) if written else "")


def _place(box: Any, edges: Sequence[int]) -> str:
    """The place of a box whose top, left, bottom and right are at `edges`; "" for no box, or one in pixels (above 1000)."""
    if not isinstance(box, list) or len(box) != 4 or any(isinstance(n, bool) or not isinstance(n, int | float) for n in box):
        return ""
    if max(box) > _MOST:
        return ""
    y0, x0, y1, x1 = (box[edge] * (_MOST if max(box) <= 1 else 1) for edge in edges)
    if y1 - y0 > _FULL and x1 - x0 > _FULL:
        return ""
    row, column = (sum((low + high) / 2 > third for third in _THIRDS) for low, high in ((y0, y1), (x0, x1)))
    return _PLACES[row][column]


def _member(name: str, text: str, template: int) -> str:
    spoken = " ".join(name.replace("_", " ").split())
    written = _MEMBERS[template] if spoken else "{value}."
    return _capitalised(written.format(name=spoken, value=text.rstrip(".")))


def _text(value: Any) -> str:
    """A value in words: texts without colours as hex codes, joined; numbers; "" for what has none."""
    if isinstance(value, list):
        texts = [text for item in value if (text := _text(item))]
        return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = " ".join(str(value).split()) if isinstance(value, str | int | float) else ""
    return "" if HEX_COLOR.fullmatch(text) else text


def _finished(text: str) -> str:
    return text if not text or _FINISHED.search(text) else text + "."


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
