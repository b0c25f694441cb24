"""Labels of the words of a text about its scene: the answers that t5-mini learns to give, and that its probes ask for.

Texts are the true descriptions and prompts as a person would write them. A word that speaks of an object carries the
object's labels as far as the text states them, wherever in the text it does; one of the background its colour and pattern.
"""

import random
import re
from dataclasses import dataclass, field, replace

from examples.openmoji.backgrounds import COLORS, PATTERNS
from examples.openmoji.composition import PLACES, Scene, SceneObject
from examples.openmoji.descriptions import describe, with_article
from examples.openmoji.kinds import KIND_BY_NAME, KIND_NAMES

SIZES = ("large", "small")
RELATIONS = ("left of", "right of", "above", "below")
_INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
# Each word's labels, in this order, and the answers to each. `number` is how many of the kind there are, less one.
LABELS: dict[str, tuple[str, ...]] = {
    "kind": KIND_NAMES,
    "size": SIZES,
    "place": tuple(PLACES),
    "number": ("1", "2", "3"),
    "relation": RELATIONS,
    "color": COLORS,
    "pattern": PATTERNS,
}
DESCRIPTIONS = ("dense", "medium", "short", "alt_text")
FORMS = (*DESCRIPTIONS, "prompt")

_KIND_OF_WORD = {word: kind.name for kind in KIND_BY_NAME.values() for word in (kind.name, kind.plural)}
_NUMBERS = {"a": "1", "an": "1", "two": "2", "three": "3"}
_COUNTED_KIND = re.compile(rf"\b(?:({'|'.join(_NUMBERS)}) )?({'|'.join(_KIND_OF_WORD)})\b")
_RELATION_SENTENCE = re.compile(r"(the (\w+))( is .* )(the (\w+))\.")
_BACKGROUND_WORDS = re.compile(rf"\b(?:background|striped|stripes|dotted|dots|checkered|checks|plain|{'|'.join(COLORS)})\b")

_PREFIXES = ("", "", "", "a picture of ", "an image of ", "a drawing of ", "an illustration of ", "there is ", "a scene with ")
_PLACE_PHRASES = {
    "top left": ("at the top left", "in the top left corner", "in the upper left", "top left"),
    "top": ("at the top", "at the top", "on top", "in the upper part"),
    "top right": ("at the top right", "in the top right corner", "in the upper right", "top right"),
    "left": ("on the left", "at the left", "on the left side", "to the left"),
    "center": ("in the center", "at the center", "in the middle", "centered"),
    "right": ("on the right", "at the right", "on the right side", "to the right"),
    "bottom left": ("at the bottom left", "in the bottom left corner", "in the lower left", "bottom left"),
    "bottom": ("at the bottom", "at the bottom", "below", "in the lower part"),
    "bottom right": ("at the bottom right", "in the bottom right corner", "in the lower right", "bottom right"),
}
_SIZE_WORDS = {"large": ("large", "large", "big"), "small": ("small", "small", "little")}
_RELATION_PHRASES = {
    "left of": ("to the left of", "left of", "at the left of"),
    "right of": ("to the right of", "right of", "at the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_PATTERN_NOUNS = {"striped": "stripes", "dotted": "dots", "checkered": "checks"}

Labels = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class LabelledText:
    """A text with labels for stretches of it."""

    text: str
    spans: tuple[tuple[int, int, Labels], ...]
    """(first character, the one after the last, labels), in order; the labels are some of LABELS."""
    nouns: tuple[tuple[int, Labels], ...]
    """Position of the noun of each mention of an object: (first character, labels)."""
    kinds: Labels = field(default_factory=dict)
    """Kinds that the text names, and how many of each, if it says so (otherwise "")."""
    places: Labels = field(default_factory=dict)
    """Kind by place, if the text gives the place of every object; else empty."""
    background: Labels = field(default_factory=dict)
    """Colour and pattern, if the text states them."""


def labelled_text(scene: Scene, form: str, *, seed: int, lower: bool = True) -> LabelledText:
    """A text of the scene in the phrasing of the seed; in lower case, as the pipeline reads captions, or as written."""
    if form == "prompt":
        return _prompt(scene, random.Random(f"{scene.split}/{seed}/{scene.index}/prompt"))
    written: str = getattr(describe(scene, seed=seed), form)
    text = written.lower()
    found = _labelled_dense(scene, text) if form == "dense" else _labelled_list(scene, text, states_background=form == "medium")
    return found if lower else replace(found, text=written)


def _labelled_dense(scene: Scene, text: str) -> LabelledText:
    """A dense description: the opener, a sentence for each object, a relation, the background, the style."""
    objects = [(thing.kind, _object_labels(scene, thing)) for thing in scene.objects]
    of_kind = dict(objects)
    background = _background_labels(scene)
    spans, nouns = [], []
    start = 0
    for number, sentence in enumerate(text.split(". ")):
        relation = _RELATION_SENTENCE.fullmatch(f"{sentence}.")
        if 1 <= number <= len(objects):
            kind, labels = objects[number - 1]
            spans.append((start, start + len(sentence), labels))
            nouns.append((start + _start_of(kind, sentence), labels))
        elif relation and scene.relation:
            stated = scene.relation.relation
            for group, word in ((2, stated), (5, _INVERSE[stated])):
                labels = of_kind[relation[group]] | {"relation": word}
                spans.append((start + relation.start(group - 1), start + relation.end(group), labels))
                nouns.append((start + relation.start(group), labels))
        elif number == len(objects) + 1 + (scene.relation is not None):
            spans.append((start, start + len(sentence), background))
        start += len(sentence) + 2
    places = {thing.place: thing.kind for thing in scene.objects}
    return LabelledText(
        text=text, spans=tuple(spans), nouns=tuple(nouns), kinds=_counts(scene), places=places, background=background
    )


def _labelled_list(scene: Scene, text: str, *, states_background: bool) -> LabelledText:
    """A list of kinds, perhaps with numbers, perhaps followed by the background."""
    spans, nouns = [], []
    kinds = {}
    for match in _COUNTED_KIND.finditer(text):
        labels = {"kind": _KIND_OF_WORD[match[2]]}
        if match[1]:
            labels["number"] = _NUMBERS[match[1]]
        kinds[labels["kind"]] = labels.get("number", "")
        spans.append((match.start(), match.end(), labels))
        nouns.append((match.start(2), labels))
    background = _background_labels(scene) if states_background else {}
    if states_background:
        spans += [(match.start(), match.end(), background) for match in _BACKGROUND_WORDS.finditer(text)]
    return LabelledText(text=text, spans=tuple(spans), nouns=tuple(nouns), kinds=kinds, background=background)


def _prompt(scene: Scene, rng: random.Random) -> LabelledText:
    """Prompt as a person would write it: "a large owl on the left and a key at the top, striped blue background"."""
    with_places, with_background = rng.random() < 0.8, rng.random() < 0.9
    things = list(scene.objects)
    rng.shuffle(things)
    text = rng.choice(_PREFIXES)
    spans, nouns = [], []
    relation = scene.relation if len(things) == 2 and rng.random() < 0.3 else None
    if relation:
        things.sort(key=lambda thing: thing.kind != relation.subject)
        with_places = False
    for number, thing in enumerate(things):
        if number:
            last = number == len(things) - 1
            text += f" {rng.choice(_RELATION_PHRASES[relation.relation])} " if relation else " and " if last else ", "
        labels = _object_labels(scene, thing)
        phrase = thing.kind
        if rng.random() < 0.3:
            phrase = f"{KIND_BY_NAME[thing.kind].color} {phrase}"
        if rng.random() < 0.7:
            phrase = f"{rng.choice(_SIZE_WORDS[thing.size])} {phrase}"
        else:
            del labels["size"]
        phrase = with_article(phrase)
        noun = len(text) + _start_of(thing.kind, phrase)
        if with_places:
            phrase += f" {rng.choice(_PLACE_PHRASES[thing.place])}"
        else:
            del labels["place"]
        if relation:
            labels["relation"] = _INVERSE[relation.relation] if number else relation.relation
        spans.append((len(text), len(text) + len(phrase), labels))
        nouns.append((noun, labels))
        text += phrase
    background = _background_labels(scene) if with_background else {}
    if background:
        phrase = _background_phrase(scene, rng)
        spans.append((len(text), len(text) + len(phrase), background))
        text += phrase
    return LabelledText(
        text=text,
        spans=tuple(spans),
        nouns=tuple(nouns),
        kinds=_counts(scene),
        places={thing.place: thing.kind for thing in things} if with_places else {},
        background=background,
    )


def _background_phrase(scene: Scene, rng: random.Random) -> str:
    color, pattern = scene.color, scene.pattern
    named = f"{pattern} {color} background" if rng.random() < 0.5 else f"{color} {pattern} background"
    if pattern in _PATTERN_NOUNS and rng.random() < 0.3:
        named = f"{color} background with {_PATTERN_NOUNS[pattern]}"
    elif pattern == "plain" and rng.random() < 0.3:
        named = f"{color} background"
    return rng.choice(
        (f" on {with_article(named)}", f" before {with_article(named)}", f", {named}", f". the background is {pattern} {color}")
    )


def _object_labels(scene: Scene, thing: SceneObject) -> Labels:
    number = sum(other.kind == thing.kind for other in scene.objects)
    return {"kind": thing.kind, "size": thing.size, "place": thing.place, "number": str(number)}


def _background_labels(scene: Scene) -> Labels:
    return {"color": scene.color, "pattern": scene.pattern}


def _counts(scene: Scene) -> Labels:
    kinds = [thing.kind for thing in scene.objects]
    return {kind: str(kinds.count(kind)) for kind in kinds}


def _start_of(word: str, text: str) -> int:
    match = re.search(rf"\b{word}\b", text)
    assert match, f"no {word} in {text!r}"
    return match.start()
