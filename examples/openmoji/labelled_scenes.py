"""Scenes with one true text each, in the forms that a training is to read."""

import random
from collections.abc import Mapping
from pathlib import Path

from examples.openmoji.composition import draw_scene, render
from examples.openmoji.labelled_texts import labelled_text
from examples.openmoji.scene_files import jpeg_bytes


def write_labelled_scenes(folder: Path, count: int, *, seed: int, forms: Mapping[str, float]) -> None:
    """Writes JPEGs of scenes of the split `train`, each with a text in a .txt; files that are there already are left.

    `forms` are the shares of the forms of texts (labelled_texts.py).
    """
    for index in range(count):
        path = folder / f"{index // 1000:03d}" / f"{index:06d}.txt"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        scene = draw_scene(seed=seed, index=index)
        (form,) = random.Random(f"{seed}/{index}").choices(list(forms), weights=list(forms.values()))
        path.with_suffix(".jpg").write_bytes(jpeg_bytes(render(scene)))
        path.write_text(labelled_text(scene, form, seed=index, lower=False).text, encoding="utf-8")
