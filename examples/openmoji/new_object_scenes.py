"""Scenes of an object that no training saw: ten to learn it from, and what is asked for afterwards, elsewhere.

The ten show it at five places before ten backgrounds; it is asked for at the other four, before other backgrounds. So neither
its place nor its background can be remembered.
"""

import random
from pathlib import Path

from examples.openmoji.backgrounds import COLORS, PATTERNS
from examples.openmoji.composition import PLACES, Scene, place_object, render
from examples.openmoji.kinds import NEW_KIND
from examples.openmoji.labelled_texts import labelled_text
from examples.openmoji.scene_files import jpeg_bytes

NUM_PICTURES = 10
SEEN_PLACES = ("top left", "top", "center", "right", "bottom left")
ASKED_PLACES = tuple(place for place in PLACES if place not in SEEN_PLACES)
_SEED = 2026


def pictures() -> tuple[Scene, ...]:
    """The ten scenes that the object is learned from; each of the five places twice, each background once."""
    rng = random.Random(f"{_SEED}/pictures")
    backgrounds = _backgrounds()[:NUM_PICTURES]
    return tuple(
        _scene(rng, index, SEEN_PLACES[index % len(SEEN_PLACES)], background) for index, background in enumerate(backgrounds)
    )


def asked_scenes(count: int) -> tuple[Scene, ...]:
    """Scenes to ask for, whose places and backgrounds are in none of the pictures; at most 120."""
    rng = random.Random(f"{_SEED}/asked")
    pairs = [(place, background) for background in _backgrounds()[NUM_PICTURES:] for place in ASKED_PLACES]
    rng.shuffle(pairs)
    return tuple(_scene(rng, index, place, background) for index, (place, background) in enumerate(pairs[:count]))


def prompt_of(scene: Scene) -> str:
    """Prompt that a person would write for the scene, with place and background: the first such phrasing."""
    for seed in range(100):
        text = labelled_text(scene, "prompt", seed=seed)
        if text.background and text.places:
            return text.text
    raise AssertionError("a hundred phrasings, and none states place and background")


def write_pictures(folder: Path) -> None:
    """The ten pictures as JPEGs, each with a .txt of what it shows; the same each time."""
    folder.mkdir(parents=True, exist_ok=True)
    for scene in pictures():
        path = folder / f"{NEW_KIND.name}-{scene.index}.jpg"
        path.write_bytes(jpeg_bytes(render(scene)))
        path.with_suffix(".txt").write_text(prompt_of(scene), encoding="utf-8")


def _backgrounds() -> list[tuple[str, str]]:
    pairs = [(color, pattern) for color in COLORS for pattern in PATTERNS]
    random.Random(f"{_SEED}/backgrounds").shuffle(pairs)
    return pairs


def _scene(rng: random.Random, index: int, place: str, background: tuple[str, str]) -> Scene:
    thing = place_object(rng, NEW_KIND.name, place, alone=True)
    color, pattern = background
    return Scene(index=index, split="train", objects=(thing,), color=color, pattern=pattern, relation=None)
