"""Prose of a structured caption, for training that reads sentences: templates, and keys that a seed drops or shuffles.

An object with a `bbox` is told with its place, by the centre of the box: [y0, x0, y1, x1] in 0..1000, or in 0..1 where no
number is above 1. Of the other members a text that ends as a sentence is taken as it is, and a shorter one gets a template with
its key. Boxes, colours as hex codes and labels (`type`) are left out: nobody writes them.
"""

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dataset_builder.json_text import BOX, DESCRIPTIONS, HEX_COLOR, LABELS

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
_THIRDS = (1000 / 3, 2000 / 3)
_FULL = 850
"""Sides of a box above which it has no place: it fills the image."""
_FINISHED = re.compile(r"[.!?…][\"'”’)]*$")


def prose(value: Mapping[str, Any], *, seed: int) -> str:
    """A structured caption as sentences. The same value and seed give the same text; "" for a value without words."""
    rng = random.Random(seed)
    style = _Style(
        template=rng.randrange(len(_MEMBERS)), is_whole=rng.random() < _WHOLE_SHARE, is_shuffled=rng.random() < _SHUFFLED_SHARE
    )
    return " ".join(_sentences(value, "", style, rng))


@dataclass(frozen=True, kw_only=True)
class _Style:
    """What one caption does throughout."""

    template: int
    is_whole: bool
    is_shuffled: bool


def _sentences(value: Any, name: str, style: _Style, rng: random.Random) -> Iterator[str]:
    if isinstance(value, dict):
        if any(isinstance(value.get(key), str) for key in DESCRIPTIONS):
            yield _thing(value, style)
            return
        for key in _kept(value, style, rng):
            yield from _sentences(value[key], key, style, rng)
    elif isinstance(value, list) and not all(isinstance(item, str) for item in value):
        for item in value:
            yield from _sentences(item, name, style, rng)
    elif text := _text(value):
        is_sentence = " " in text and _FINISHED.search(text)
        yield _finished(text) if is_sentence else _member(name, text, style.template if isinstance(value, str | list) else 0)


def _kept(value: Mapping[str, Any], style: _Style, rng: random.Random) -> list[str]:
    """The keys that are told; at least one of those with words. The first of them leads also where they are shuffled."""
    told = [key for key in value if key not in (BOX, *LABELS) and _has_words(value[key])]
    kept = told if style.is_whole else [key for key in told if rng.random() >= _DROPPED_SHARE] or told[:1]
    return [*kept[:1], *rng.sample(kept[1:], len(kept[1:]))] if style.is_shuffled else kept


def _has_words(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_words(member) for key, member in value.items() if key not in (BOX, *LABELS))
    return any(map(_has_words, value)) if isinstance(value, list) else bool(_text(value))


def _thing(value: Mapping[str, Any], style: _Style) -> str:
    """The sentence about an object with a description, its place and the words on it."""
    thing = next(_text(value[key]) for key in DESCRIPTIONS if isinstance(value.get(key), str)).rstrip(".")
    place = _place(value.get(BOX))
    said = _PLACED[style.template].format(thing=thing, place=place) if place and thing else _finished(thing)
    written = _text(value["text"]) if isinstance(value.get("text"), str) else ""
    return _capitalised(said) + (_WRITTEN[style.template].format(text=written) if written else "")


def _place(box: Any) -> str:
    if not isinstance(box, list) or len(box) != 4 or any(isinstance(n, bool) or not isinstance(n, int | float) for n in box):
        return ""
    y0, x0, y1, x1 = (n * 1000 for n in box) if max(box) <= 1 else box
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
