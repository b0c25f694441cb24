"""The texts of a scene: a sparse alt text, and true descriptions of three lengths in several phrasings.

Every statement is true of the scene, and everything that a description says can be checked by `truth.py`. Objects are named
in reading order. The spelling is American, as LLaVA's is.
"""

import random
from dataclasses import dataclass

from examples.openmoji.composition import Scene, SceneObject
from examples.openmoji.kinds import KIND_BY_NAME

NUMBER_WORDS = {1: "one", 2: "two", 3: "three"}
_NOUN_OF_PATTERN = {"striped": "stripes", "dotted": "dots", "checkered": "checks"}

_OPENERS = (
    "The image features {number} {noun}.",
    "There {verb} {number} {noun} in this picture.",
    "The picture shows {number} {noun}.",
)
_OBJECTS = (
    "{A_thing}, {a_category}, is {at_place}.",
    "{At_place} there is {a_thing}, {a_category}.",
    "{At_place}, {a_thing} can be seen, which is {a_category}.",
)
_PHRASES_OF_PLACE = {
    "top left": ("at the top left", "in the top left corner"),
    "top": ("at the top", "at the top"),
    "top right": ("at the top right", "in the top right corner"),
    "left": ("on the left", "on the left side"),
    "center": ("in the center", "in the center"),
    "right": ("on the right", "on the right side"),
    "bottom left": ("at the bottom left", "in the bottom left corner"),
    "bottom": ("at the bottom", "at the bottom"),
    "bottom right": ("at the bottom right", "in the bottom right corner"),
}
_RELATIONS = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}
_STYLES = (
    "The style is a flat cartoon illustration with bold black outlines and bright colors.",
    "It is drawn in the style of a simple icon, with thick black lines and flat areas of color.",
    "The style is that of a cheerful sticker: a clean vector drawing with strong black contours.",
)


@dataclass(frozen=True, kw_only=True)
class Texts:
    """All that is written about one scene."""

    alt_text: str
    """Alt text as on a web page: a few words, no more than the kinds."""
    dense: str
    medium: str
    short: str


def describe(scene: Scene, *, seed: int) -> Texts:
    """The texts of a scene; phrasings are drawn from (seed, index, split)."""
    rng = random.Random(f"{scene.split}/{seed}/{scene.index}/texts")
    return Texts(alt_text=_alt_text(scene, rng), dense=_dense(scene, rng), medium=_medium(scene, rng), short=_short(scene))


def _dense(scene: Scene, rng: random.Random) -> str:
    number = len(scene.objects)
    opener = rng.choice(_OPENERS).format(
        number=NUMBER_WORDS[number], noun=_one_or_more(number, "object", "objects"), verb=_one_or_more(number, "is", "are")
    )
    template, phrase = rng.choice(_OBJECTS), rng.randrange(2)
    objects = [_object_sentence(thing, template, phrase) for thing in scene.objects]
    relation = [_relation_sentence(scene)] if scene.relation else []
    return " ".join([opener, *objects, *relation, _background_sentence(scene, rng), rng.choice(_STYLES)])


def _object_sentence(thing: SceneObject, template: str, phrase: int) -> str:
    kind = KIND_BY_NAME[thing.kind]
    a_thing = f"a {thing.size} {kind.name}"
    at_place = _PHRASES_OF_PLACE[thing.place][phrase]
    return template.format(
        a_thing=a_thing,
        A_thing=_capitalized(a_thing),
        a_category=with_article(f"{kind.color} {kind.category}"),
        at_place=at_place,
        At_place=_capitalized(at_place),
    )


def _relation_sentence(scene: Scene) -> str:
    relation = scene.relation
    assert relation is not None
    return f"The {relation.subject} is {_RELATIONS[relation.relation]} the {relation.other}."


def _background_sentence(scene: Scene, rng: random.Random) -> str:
    background = _background(scene, rng)
    behind = _one_or_more(len(scene.objects), "it", "them")
    return rng.choice(
        (
            f"Behind {behind} is {background}.",
            f"The background is {scene.pattern} {scene.color}.",
            f"The scene is set on {background}.",
        )
    )


def _background(scene: Scene, rng: random.Random) -> str:
    """Background with its article: "a striped pink background" or "a pink background with stripes"."""
    if scene.pattern in _NOUN_OF_PATTERN and rng.random() < 0.4:
        return f"{with_article(scene.color)} background with {_NOUN_OF_PATTERN[scene.pattern]}"
    return f"a {scene.pattern} {scene.color} background"


def _medium(scene: Scene, rng: random.Random) -> str:
    verb = _one_or_more(len(scene.objects), "is", "are")
    background = _background(scene, rng)
    return rng.choice(
        (
            f"{_capitalized(_short(scene))} on {background}.",
            f"{_capitalized(_short(scene))} {verb} drawn on {background}.",
            f"The picture shows {_short(scene)}. The background is {scene.pattern} {scene.color}.",
        )
    )


def _short(scene: Scene) -> str:
    """The kinds with their numbers: "an owl and two keys"."""
    return _joined([with_article(kind) if count == 1 else _counted(kind, count) for kind, count in _counts(scene).items()])


def _alt_text(scene: Scene, rng: random.Random) -> str:
    kinds = list(_counts(scene))
    style = rng.randrange(5)
    if style == 0:
        return ", ".join(kinds)
    if style == 1:
        return _joined(kinds)
    if style == 2:
        return _short(scene)
    if style == 3:
        return f"{_joined(kinds)} icon"
    return kinds[0]


def _counts(scene: Scene) -> dict[str, int]:
    kinds = [thing.kind for thing in scene.objects]
    return {kind: kinds.count(kind) for kind in kinds}


def _counted(kind: str, count: int) -> str:
    return f"{NUMBER_WORDS[count]} {KIND_BY_NAME[kind].plural}"


def _joined(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _one_or_more(number: int, one: str, more: str) -> str:
    return one if number == 1 else more


def with_article(words: str) -> str:
    """ "a key", "an owl"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _capitalized(text: str) -> str:
    return text[0].upper() + text[1:]
