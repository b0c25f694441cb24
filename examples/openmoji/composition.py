"""Scenes: their objects, and their pixels.

A scene is drawn from (seed, index, split) alone. One object is at any of nine places; two or three are at places whose
cells do not overlap, so that no object hides another.
"""

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from examples.openmoji.backgrounds import COLORS, IMAGE_SIZE_PX, PATTERNS, background_pixels
from examples.openmoji.held_out import allowed_kinds
from examples.openmoji.kinds import KIND_NAMES
from examples.openmoji.sprites import sprite

# Place -> (row, column) in a grid of 3 x 3.
PLACES = {
    "top left": (0, 0),
    "top": (0, 1),
    "top right": (0, 2),
    "left": (1, 0),
    "center": (1, 1),
    "right": (1, 2),
    "bottom left": (2, 0),
    "bottom": (2, 1),
    "bottom right": (2, 2),
}
_CORNERS = ("top left", "top right", "bottom left", "bottom right")
LAYOUTS: dict[int, tuple[tuple[str, ...], ...]] = {
    1: tuple((place,) for place in PLACES),
    2: (
        *((a, b) for i, a in enumerate(_CORNERS) for b in _CORNERS[i + 1 :]),
        *(("left", "right"), ("top", "bottom")),
        *(("top", "bottom left"), ("top", "bottom right"), ("top left", "bottom"), ("top right", "bottom")),
        *(("top right", "left"), ("left", "bottom right"), ("top left", "right"), ("right", "bottom left")),
    ),
    3: (
        *(tuple(place for place in _CORNERS if place != absent) for absent in _CORNERS),
        *(("top", "bottom left", "bottom right"), ("top left", "top right", "bottom")),
        *(("top right", "left", "bottom right"), ("top left", "right", "bottom left")),
    ),
}
_NUM_OBJECTS_WEIGHTS = (0.3, 0.4, 0.3)
_SAME_KIND_SHARE = 0.25
_LARGE_SHARE = 0.6
# Longer side in pixels, both ends included. Two large ones must fit next to each other in 64 pixels.
_SIZES_PX = {"large": (28, 31), "small": (20, 23)}
_LARGE_ALONE_PX = (30, 34)
_CENTERS_PX = (16, 32, 48)
_JITTER_PX = 2
_HALF_PX = IMAGE_SIZE_PX // 2


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One object of a scene; its box is in pixels from the top left corner of the image."""

    kind: str
    size: str
    """`large` or `small`."""
    place: str
    """A key of PLACES."""
    x_px: int
    y_px: int
    width_px: int
    height_px: int
    size_px: int
    """The longer side."""


@dataclass(frozen=True, kw_only=True)
class Relation:
    """`subject` is `relation` `other`: both kinds occur once in the scene, and their cells differ that way."""

    subject: str
    relation: str
    """`left of`, `right of`, `above` or `below`."""
    other: str


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The truth of one image."""

    index: int
    split: str
    objects: tuple[SceneObject, ...]
    """In reading order: rows from the top, each from the left."""
    color: str
    pattern: str
    relation: Relation | None


def draw_scene(
    *, seed: int, index: int, split: str = "train", single_object: bool = False, num_kinds: int | None = None
) -> Scene:
    """The scene of this index: the same for the same arguments, whatever else is drawn.

    `num_kinds` uses the first kinds only.
    """
    rng = random.Random(f"{split}/{seed}/{index}/{single_object}")
    while True:  # In `unseen`, a place and background may have no held-out kind: then all is drawn again.
        color, pattern = rng.choice(COLORS), rng.choice(PATTERNS)
        num_objects = 1 if single_object else rng.choices((1, 2, 3), _NUM_OBJECTS_WEIGHTS)[0]
        places = sorted(rng.choice(LAYOUTS[num_objects]), key=lambda place: PLACES[place])
        kinds = _choose_kinds(rng, places, split=split, color=color, pattern=pattern, num_kinds=num_kinds)
        if kinds is not None:
            break
    objects = tuple(place_object(rng, kind, place, alone=num_objects == 1) for kind, place in zip(kinds, places, strict=True))
    relation = _relation(objects)
    return Scene(index=index, split=split, objects=objects, color=color, pattern=pattern, relation=relation)


def render(scene: Scene) -> npt.NDArray[np.uint8]:
    """The scene's pixels: uint8 RGB of shape (64, 64, 3)."""
    pixels = background_pixels(scene.color, scene.pattern).copy()
    for thing in scene.objects:
        drawing = sprite(thing.kind, thing.size_px)
        box = pixels[thing.y_px : thing.y_px + thing.height_px, thing.x_px : thing.x_px + thing.width_px]
        background_share = 255 - drawing[..., 3:].astype(np.uint16)
        box[:] = drawing[..., :3] + ((box * background_share + 127) // 255).astype(np.uint8)
    return pixels


def _choose_kinds(
    rng: random.Random, places: list[str], *, split: str, color: str, pattern: str, num_kinds: int | None
) -> list[str] | None:
    """A kind for each place that the split allows, or None if a place has none."""
    world = KIND_NAMES[:num_kinds]
    allowed = [[kind for kind in allowed_kinds(split, place, color, pattern) if kind in world] for place in places]
    if not all(allowed):
        return None
    kinds = [rng.choice(choices) for choices in allowed]
    if len(places) > 1 and rng.random() < _SAME_KIND_SHARE:
        first, second = sorted(rng.sample(range(len(places)), 2))
        if kinds[first] in allowed[second]:
            kinds[second] = kinds[first]
    return kinds


def place_object(rng: random.Random, kind: str, place: str, *, alone: bool) -> SceneObject:
    """An object of this kind at a place, in a size and a few pixels off as the numbers have it."""
    size = "large" if rng.random() < _LARGE_SHARE else "small"
    size_px = rng.randint(*(_LARGE_ALONE_PX if alone and size == "large" else _SIZES_PX[size]))
    height_px, width_px = sprite(kind, size_px).shape[:2]
    row, column = PLACES[place]
    x_px = _start(rng, column, width_px, alone=alone)
    y_px = _start(rng, row, height_px, alone=alone)
    return SceneObject(
        kind=kind, size=size, place=place, x_px=x_px, y_px=y_px, width_px=width_px, height_px=height_px, size_px=size_px
    )


def _start(rng: random.Random, cell: int, length_px: int, *, alone: bool) -> int:
    """Start of the object along one axis; objects that have company stay in their half of the image."""
    start = _CENTERS_PX[cell] - length_px // 2 + rng.randint(-_JITTER_PX, _JITTER_PX)
    low = _HALF_PX if cell == 2 and not alone else 0
    high = _HALF_PX if cell == 0 and not alone else IMAGE_SIZE_PX
    return min(max(start, low), high - length_px)


def _relation(objects: tuple[SceneObject, ...]) -> Relation | None:
    """The relation of the first two objects whose kinds occur once. The small one is the subject, otherwise the first.

    A subject drawn at random was never learned: half of llava-mini's relation sentences then named one kind twice.
    """
    kinds = [thing.kind for thing in objects]
    unique = [thing for thing in objects if kinds.count(thing.kind) == 1]
    if len(unique) < 2:
        return None
    first, second = unique[1::-1] if (unique[0].size, unique[1].size) == ("large", "small") else unique[:2]
    (first_row, first_column), (second_row, second_column) = PLACES[first.place], PLACES[second.place]
    if abs(first_column - second_column) >= abs(first_row - second_row):
        relation = "left of" if first_column < second_column else "right of"
    else:
        relation = "above" if first_row < second_row else "below"
    return Relation(subject=first.kind, relation=relation, other=second.kind)
