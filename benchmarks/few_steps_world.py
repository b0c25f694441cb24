"""The data of a distillation in the small world: scenes of all kinds with true texts, as a captioning run and features."""

from pathlib import Path

from benchmarks.commands import run_module

_SEED = 41
_FORMS = {"prompt": 0.5, "dense": 0.2, "medium": 0.2, "alt_text": 0.1}
"""Shares of the scenes that are described as a person asks for them, as captions of two lengths, and sparsely."""
RESOLUTION_PX = 64


def make_features(folder: Path, *, scenes: int) -> Path:
    """FEATURES of `scenes` scenes, which are made where they are missing. Raises UserError where a command fails."""
    from examples.openmoji.labelled_scenes import write_labelled_scenes

    images, run, features = folder / "images", folder / "run", folder / "features"
    write_labelled_scenes(images, scenes, seed=_SEED, forms=_FORMS)
    tokenizer = ("--t5.tokenizer", "mini")
    run_module("dataset_builder.convert", "--source", "image-txt", "--target", "run", str(images), str(run), *tokenizer)
    run_module(
        "trainer.precompute",
        *("--dataset", str(run), "--out", str(features), "--stage", "aesthetic", "--resolution", str(RESOLUTION_PX)),
        *("--vae.name", "mini", "--text_encoder.name", "mini"),
    )
    return features
