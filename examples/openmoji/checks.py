"""Checks of an image against its prompt, the same for every judge, whatever it reads images with."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from examples.openmoji.composition import PLACES, Relation
from examples.openmoji.truth import ReadCaption, TrueObject, Truth

VERSION = "1"
"""Changes when `check` or what captions are read by (examples/openmoji/truth.py) may find otherwise."""
CHECKS = ("object", "size", "place", "color", "pattern", "background", "relation", "count", "all")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A judge's reading of one image."""

    read: ReadCaption
    seen: str
    """The same in words."""


def check(read: ReadCaption, asked: Truth) -> dict[str, float]:
    """Each of CHECKS that the prompt asks for, in 0..1; what the prompt leaves open ("" or None) is not checked.

    object, size and place: the share of the objects asked for that are there, and there in that size and at that place.
    color, pattern, background (both): 1 if it is that and nothing else. relation: 1 if two objects of these kinds have it.
    count: 1 if there are as many of each kind as asked for and nothing else. all: 1 if all of it is right.
    """
    asked_counts = Counter(thing.kind for thing in asked.objects)
    found = {"object": sum((asked_counts & Counter(read.counts)).values()) / len(asked.objects)}
    for name in ("size", "place"):
        stated = [(thing.kind, getattr(thing, name)) for thing in asked.objects if getattr(thing, name)]
        if stated:
            said = Counter((thing.kind, getattr(thing, name)) for thing in read.objects)
            found[name] = (said & Counter(stated)).total() / len(stated)
    background = {"color": (read.colors, asked.background_color), "pattern": (read.patterns, asked.pattern)}
    found |= {name: float(seen == {wanted}) for name, (seen, wanted) in background.items() if wanted}
    if stated_background := background.keys() & found.keys():
        found["background"] = min(found[name] for name in stated_background)
    if asked.relation:
        found["relation"] = float(stands(read.objects, asked.relation))
    found["count"] = float(read.counts == asked_counts)
    return {**found, "all": float(min(found.values()) == 1.0)}


def stands(objects: Iterable[TrueObject], relation: Relation) -> bool:
    """Whether any two objects of these kinds have this relation, by the rows and columns of their places."""
    placed = [(thing.kind, PLACES[thing.place]) for thing in objects if thing.place]
    subjects = [cell for kind, cell in placed if kind == relation.subject]
    others = [cell for kind, cell in placed if kind == relation.other]
    axis = 1 if relation.relation in ("left of", "right of") else 0
    ahead = relation.relation in ("left of", "above")
    return any(a[axis] < b[axis] if ahead else a[axis] > b[axis] for a in subjects for b in others)
