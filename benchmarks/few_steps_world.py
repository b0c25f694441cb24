"""The data of a distillation in the small world: scenes of all kinds with true texts, as a captioning run and features."""

import random
from pathlib import Path

from benchmarks.commands import run_module

_SEED = 41
_FORMS = {"prompt": 0.5, "dense": 0.2, "medium": 0.2, "alt_text": 0.1}
"""Shares of the scenes that are described as a person asks for them, as captions of two lengths, and sparsely."""
RESOLUTION_PX = 64


def make_features(folder: Path, *, scenes: int) -> Path:
    """FEATURES of `scenes` scenes, which are made where they are missing. Raises UserError where a command fails."""
    images, run, features = folder / "images", folder / "run", folder / "features"
    _write_scenes(images, scenes)
    tokenizer = ("--t5.tokenizer", "mini")
    run_module("dataset_builder.convert", "--source", "image-txt", "--target", "run", str(images), str(run), *tokenizer)
    run_module(
        "trainer.precompute",
        *("--dataset", str(run), "--out", str(features), "--stage", "aesthetic", "--resolution", str(RESOLUTION_PX)),
        *("--vae.name", "mini", "--text_encoder.name", "mini"),
    )
    return features


def _write_scenes(folder: Path, count: int) -> None:
    """JPEGs of scenes of the split `train`, each with a text in a .txt; what is there already is left."""
    from examples.openmoji.composition import draw_scene, render
    from examples.openmoji.labelled_texts import labelled_text
    from examples.openmoji.scene_files import jpeg_bytes

    for index in range(count):
        path = folder / f"{index // 1000:03d}" / f"{index:06d}.txt"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        scene = draw_scene(seed=_SEED, index=index)
        (form,) = random.Random(f"{_SEED}/{index}").choices(list(_FORMS), weights=list(_FORMS.values()))
        path.with_suffix(".jpg").write_bytes(jpeg_bytes(render(scene)))
        path.write_text(labelled_text(scene, form, seed=index, lower=False).text, encoding="utf-8")
