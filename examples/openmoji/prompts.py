"""Prompts for the small world by category, in the manner of T2I-CompBench, each with what must be seen.

A prompt is written from a scene that nothing else knows: as a person would ("a big owl in the upper left, blue striped
background"), or as llava-mini describes pictures. Half of the scenes are of the split `unseen`: each of their objects is
at a place before a background where no `train` scene ever shows it.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from examples.openmoji.composition import Relation, Scene, draw_scene
from examples.openmoji.held_out import SPLITS
from examples.openmoji.labelled_texts import LabelledText, labelled_text
from examples.openmoji.truth import TrueObject, Truth, truth_of
from foundry.errors import UserError

Style = Literal["person", "dense"]
_PHRASINGS = 50
"""Number of texts of a scene that are searched for one that states what the category needs."""
_SCENES_PER_PROMPT = 1000
"""Number of scenes searched for each prompt before the world counts as too small."""


@dataclass(frozen=True, kw_only=True)
class Category:
    """Properties that the prompts of a category share."""

    num_objects: tuple[int, ...]
    """Number of objects in their scenes."""
    stated: frozenset[str] = frozenset({"place"})
    """Properties of each object that they state, at least."""
    form: Literal["prompt", "medium"] = "prompt"
    """Style of the texts, one of examples/openmoji/labelled_texts.py."""
    patterned: bool = False
    """Whether the background must not be plain."""
    repeated: bool = False
    """Whether a kind must occur more than once."""


CATEGORIES = {
    "object": Category(num_objects=(1, 2, 3)),
    "background": Category(num_objects=(1,)),
    "pattern": Category(num_objects=(1,), patterned=True),
    "size": Category(num_objects=(1, 2), stated=frozenset({"place", "size"})),
    "place": Category(num_objects=(2, 3)),
    "relation": Category(num_objects=(2,), stated=frozenset({"relation"})),
    "count": Category(num_objects=(2, 3), stated=frozenset(), form="medium", repeated=True),
    "complex": Category(num_objects=(2, 3), stated=frozenset({"place", "size"})),
}
_OF_SEVERAL = ("relation", "count")
"""Categories that a world of single objects has not."""


@dataclass(frozen=True, kw_only=True)
class WorldPrompt:
    """A prompt and what it asks for."""

    text: str
    category: str
    scene: Scene
    """A scene that fulfils it."""
    asked: Truth
    """Content of the prompt; "" for what it leaves open."""

    @property
    def held_out(self) -> bool:
        """Whether it asks for combinations of kind, place and background that are in no `train` scene."""
        return self.scene.split == "unseen" and any(thing.place for thing in self.asked.objects)


def draw_prompts(
    *, count: int, seed: int, style: Style = "person", single_object: bool = False, num_kinds: int | None = None
) -> tuple[WorldPrompt, ...]:
    """`count` prompts of each category and split, no text twice; the same for the same arguments.

    With `single_object`, categories of several objects are left out and the others have one. A smaller count gives the first
    prompts of a larger one, category by category. Raises UserError for a world that does not have that many.
    """
    names = [name for name in CATEGORIES if not (single_object and name in _OF_SEVERAL)]
    prompts: dict[str, WorldPrompt] = {}
    for name, split in itertools.product(names, SPLITS):
        candidates = _prompts_of(name, split, seed=seed, style=style, single_object=single_object, num_kinds=num_kinds)
        missing = count
        for prompt in itertools.islice(candidates, count * _SCENES_PER_PROMPT):
            if prompt is not None and prompt.text not in prompts:
                prompts[prompt.text] = prompt
                missing -= 1
            if not missing:
                break
        else:
            raise UserError(f"this world has {count - missing} prompts of the category {name}, not {count}: ask for fewer")
    return tuple(prompts.values())


def _prompts_of(
    name: str, split: str, *, seed: int, style: Style, single_object: bool, num_kinds: int | None
) -> Iterator[WorldPrompt | None]:
    """A prompt, or None, of each scene of a category."""
    category = CATEGORIES[name]
    for index in itertools.count():
        scene = draw_scene(
            seed=seed * len(CATEGORIES) + list(CATEGORIES).index(name),
            index=index,
            split=split,
            single_object=single_object,
            num_kinds=num_kinds,
        )
        fits = _fits(scene, category, single_object=single_object)
        text = _text_of(scene, category) if fits else None
        if text is None:
            yield None
        elif style == "dense":
            dense = labelled_text(scene, "dense", seed=seed, lower=False).text
            yield WorldPrompt(text=dense, category=name, scene=scene, asked=truth_of(scene))
        else:
            yield WorldPrompt(text=text.text, category=name, scene=scene, asked=_asked(text, category, scene.relation))


def _fits(scene: Scene, category: Category, *, single_object: bool) -> bool:
    kinds = [thing.kind for thing in scene.objects]
    return (
        (single_object or len(kinds) in category.num_objects)
        and not (category.patterned and scene.pattern == "plain")
        and not ("relation" in category.stated and scene.relation is None)
        and not (category.repeated and len(set(kinds)) == len(kinds))
    )


def _text_of(scene: Scene, category: Category) -> LabelledText | None:
    """The first phrasing that says of every object what the category asks for, and names the background."""
    for phrasing in range(_PHRASINGS):
        text = labelled_text(scene, category.form, seed=phrasing)
        objects = [labels for _, _, labels in text.spans if "kind" in labels]
        if text.background and all(category.stated <= labels.keys() for labels in objects):
            return text
    return None


def _asked(text: LabelledText, category: Category, relation: Relation | None) -> Truth:
    """Content of a text."""
    named = [labels for _, _, labels in text.spans if "kind" in labels]
    objects: list[TrueObject] = []
    for labels in named:
        thing = TrueObject(kind=labels["kind"], size=labels.get("size", ""), place=labels.get("place", ""))
        objects += [thing] * (int(labels["number"]) if category.form == "medium" else 1)
    return Truth(
        objects=tuple(objects),
        background_color=text.background["color"],
        pattern=text.background["pattern"],
        relation=relation if any("relation" in labels for labels in named) else None,
    )
