"""Scenes whose edges a control learns to follow, those of held-out combinations that it is asked for, and their scores.

Most captions name kinds and background and no places, so that places are learned from the edges.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from examples.openmoji.composition import Scene, SceneObject, draw_scene
from examples.openmoji.labelled_scenes import write_labelled_scenes
from examples.openmoji.labelled_texts import labelled_text
from examples.openmoji.sprite_judge import FoundObject, find_scenes, sprite_bank

_SEED, _ASKED_SEED = 61, 62
_FORMS = {"medium": 0.5, "prompt": 0.3, "dense": 0.1, "alt_text": 0.1}
"""Shares of the scenes that are described by kinds and background, as a person asks for them, in full, and sparsely."""
_MIN_OVERLAP = 0.5
"""Share of the union of two boxes that both have: from here on, one is where the other is."""


def write_scenes(folder: Path, count: int) -> None:
    """Writes the scenes of the training; files that are there already are left."""
    write_labelled_scenes(folder, count, seed=_SEED, forms=_FORMS)


def held_out_scenes(count: int) -> list[Scene]:
    """Scenes whose kinds are at places before backgrounds that no `train` scene has."""
    return [draw_scene(seed=_ASKED_SEED, index=index, split="unseen") for index in range(count)]


def prompt_of(scene: Scene) -> str:
    """Kinds, how many of each, and the background; no places."""
    return labelled_text(scene, "medium", seed=0, lower=False).text


def scores(scenes: Sequence[Scene], images: Sequence[npt.NDArray[np.uint8]]) -> dict[str, float]:
    """Shares of the objects, or of the images, of which a check holds."""
    found = find_scenes(np.stack(images), sprite_bank())
    pairs = list(zip(scenes, found, strict=True))
    in_box = [_num_matched(scene.objects, one.objects, by_box=True) for scene, one in pairs]
    drawn = [_num_matched(scene.objects, one.objects, by_box=False) for scene, one in pairs]
    num_objects = sum(len(scene.objects) for scene in scenes)
    backgrounds = [(one.color, one.pattern) == (scene.color, scene.pattern) for scene, one in pairs]
    return {
        "objects in their box": sum(in_box) / num_objects,
        "objects drawn anywhere": sum(drawn) / num_objects,
        "images with the right background": sum(backgrounds) / len(scenes),
    }


def _num_matched(wanted: Sequence[SceneObject], found: Sequence[FoundObject], *, by_box: bool) -> int:
    """Number of the objects of which the image has one of the kind, where they are or anywhere, each counted once."""
    left, num = list(found), 0
    for thing in wanted:
        fits = [one for one in left if one.kind == thing.kind and (not by_box or _overlap(one, thing) >= _MIN_OVERLAP)]
        if fits:
            left.remove(fits[0])
            num += 1
    return num


def _overlap(first: FoundObject, second: SceneObject) -> float:
    """Intersection over union of two boxes."""
    width = min(first.x_px + first.width_px, second.x_px + second.width_px) - max(first.x_px, second.x_px)
    height = min(first.y_px + first.height_px, second.y_px + second.height_px) - max(first.y_px, second.y_px)
    both = max(0, width) * max(0, height)
    return both / (first.width_px * first.height_px + second.width_px * second.height_px - both)
