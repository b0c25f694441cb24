"""A judge whose weights are not whole, or that computes NaN, gives no verdict."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from dataset_builder.scores.clip import resolve_clip
from examples.openmoji.stand_ins import write_blip, write_inception, write_owlv2
from foundry.errors import UserError
from tests.dataset_builder.tiny_clip import write_tiny_clip
from trainer.evaluation.judges.blip import load_blip
from trainer.evaluation.judges.clip import Clip
from trainer.evaluation.judges.detector import load_detector
from trainer.evaluation.judges.fid import _features, _network, find_weights
from trainer.evaluation.judges.models import Placement, find_model

CPU = Placement(device="cpu", dtype="float32")
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
Judge = Callable[[Path, npt.NDArray[np.uint8]], object]


def blip(path: Path, pixels: npt.NDArray[np.uint8]) -> object:
    return load_blip(find_model(str(path), setting=""), CPU, image_px=64).yes_probabilities(pixels, ["an owl?"])


def detector(path: Path, pixels: npt.NDArray[np.uint8]) -> object:
    return load_detector(find_model(str(path), setting=""), CPU, threshold=0.5)(pixels, ["owl"])


def clip(path: Path, pixels: npt.NDArray[np.uint8]) -> object:
    return Clip(resolve_clip(str(path)), CPU).cosines([pixels], ["an owl"])


def inception(path: Path, pixels: npt.NDArray[np.uint8]) -> object:
    return list(_features(_network(find_weights(str(path)), "64", "cpu"), [pixels]))


JUDGES: dict[str, tuple[Callable[[Path], Path], Judge, str]] = {
    "blip": (write_blip, blip, "embeddings.patch_embedding.weight"),
    "owlv2": (write_owlv2, detector, "embeddings.patch_embedding.weight"),
    "clip": (write_tiny_clip, clip, "visual.conv1.weight"),
    "inception": (write_inception, inception, "Conv2d_1a_3x3.conv.weight"),
}


@pytest.fixture(scope="module", params=JUDGES)
def judge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Judge, str]:
    """What was written of a judge (a folder, or the file of its weights), how it is asked, and a weight that images pass."""
    write, ask, weight = JUDGES[request.param]
    return write(tmp_path_factory.mktemp(request.param)), ask, weight


def changed(path: Path, copy: Path, weight: str, *, remove: bool) -> Path:
    """A copy in which the weight is missing, or NaN."""
    shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
    (file,) = copy.glob("*.safetensors") if copy.is_dir() else (copy,)
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    (name,) = (name for name in weights if name.endswith(weight))
    if remove:
        del weights[name]
    else:
        weights[name][:] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    return copy


def test_weights_that_are_missing_are_named(judge: tuple[Path, Judge, str], tmp_path: Path) -> None:
    path, ask, weight = judge
    with pytest.raises(UserError, match=rf"{weight}.*: (it is|fetch|give)"):
        ask(changed(path, tmp_path / "cut", weight, remove=True), PIXELS)


def test_nan_is_no_verdict(judge: tuple[Path, Judge, str], tmp_path: Path) -> None:
    path, ask, weight = judge
    ask(path, PIXELS)
    with pytest.raises(UserError, match="computes NaN or infinity: give the number format float32"):
        ask(changed(path, tmp_path / "nan", weight, remove=False), PIXELS)
