"""Runs over scenes of the small world whose captions are known: true ones, and ones with invented objects."""

import random
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from dataset_builder.concepts.t5_view import T5Config
from dataset_builder.convert import ConvertConfig, main
from examples.openmoji.composition import render
from examples.openmoji.descriptions import describe
from examples.openmoji.kinds import KIND_NAMES
from examples.openmoji.scene_files import SceneSet, jpeg_bytes, sample
from tests.foundry.units.plain_loop import run_plainly

KINDS = KIND_NAMES[:16]
SCENES = SceneSet(count=1000, seed=5, split="train", single_objects=False, num_kinds=len(KINDS), format="jpeg")


def true_captions(count: int, *, seed: int = SCENES.seed) -> dict[int, str]:
    """A dense description of each of the first scenes; another seed words it in another way."""
    return {index: describe(sample(SCENES, index).scene, seed=seed).dense for index in range(count)}


def invented_captions(count: int) -> dict[int, str]:
    """The same, again in other words, with every object replaced by one that the scene does not show."""
    said = {}
    for index, text in true_captions(count, seed=99).items():
        shown = {thing.kind for thing in sample(SCENES, index).scene.objects}
        rng = random.Random(index)
        for kind in sorted(shown):
            text = re.sub(rf"\b{kind}\b", rng.choice([other for other in KINDS if other not in shown]), text)  # noqa: PLW2901
        said[index] = text
    return said


def import_run(folder: Path, captions: Mapping[int, str], **options: object) -> str:
    """A run with these captions of these scenes, made without Ray; an empty caption counts as one that was refused."""
    images = folder.with_name(f"{folder.name}-images")
    images.mkdir(parents=True)
    for index, text in captions.items():
        (images / f"scene-{index}.jpg").write_bytes(jpeg_bytes(render(sample(SCENES, index).scene)))
        (images / f"scene-{index}.txt").write_text(text)
    settings = {"t5": T5Config(tokenizer="mini"), "prompt": "dense", **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("foundry.units.run.run_job", run_plainly)
        config = ConvertConfig(input=str(images), out=str(folder), source="image-txt", target="run", **settings)  # type: ignore[arg-type]
        assert main(config) == 0
    return str(folder)
