"""FID: a closed form, a direct calculation, references from a folder or a file, and files that are refused."""

import hashlib
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.linalg import sqrtm
from torch_fidelity import FeatureExtractorInceptionV3

from foundry.command_line import run_command
from foundry.errors import UserError
from model.generation.image_files import image_names
from trainer import evaluate
from trainer.evaluation.benchmark import ALL
from trainer.evaluation.benchmarks.prompts import open_benchmark
from trainer.evaluation.config import EvaluateConfig, FidConfig, PromptsConfig
from trainer.evaluation.frechet import Statistics
from trainer.evaluation.judges import fid as fid_weights
from trainer.evaluation.judges.fid import find_weights, frechet_distance
from trainer.evaluation.summary import comparability

PROMPTS = [f"picture {number}" for number in range(8)]
METRIC = "frechet_distance_by_random_64"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Inception network with random weights."""
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *args, **settings: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = FeatureExtractorInceptionV3("random", ["64"])
    save_file(network.state_dict(), path)
    return path


def _pictures(folder: Path, seed: int, *, number: int = 8, sides: tuple[int, int] = (24, 24)) -> Path:
    """Coloured noise, named as the drawn images of PROMPTS."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 200, size=(number, 1, 1, 3))
    for colour, name in zip(colours, image_names(PROMPTS, range(8)), strict=False):
        noise = rng.integers(0, 56, size=(*sides, 3))
        Image.fromarray((colour + noise).astype(np.uint8)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pictures")
    return _pictures(root / "drawn", 1), _pictures(root / "reference", 2, number=6)


@pytest.fixture
def evaluated(weights: Path, folders: tuple[Path, Path], tmp_path: Path) -> Callable[..., int]:
    """Evaluates the drawn images against a reference."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))

    def run(*more: str, reference: Path = folders[1], features: str = "64") -> int:
        argv = [
            "--benchmark=prompts",
            f"--images={folders[0]}",
            f"--out={tmp_path / 'out'}",
            f"--prompts.file={tmp_path / 'prompts.txt'}",
            "--prompts.clip=null",
            f"--prompts.fid.reference={reference}",
            f"--prompts.fid.weights={weights}",
            f"--prompts.fid.features={features}",
            *more,
        ]
        return run_command(EvaluateConfig, evaluate.main, prog="python -m trainer.evaluate", example="", argv=argv)

    return run


def _figure(out: Path) -> float:
    (score,) = json.loads((out / "summary.json").read_text())["scores"]
    assert (score["category"], score["metric"], score["num_images"]) == ("all prompts", METRIC, 8)
    return float(score["value"])


def _directly(weights: Path, folder: Path) -> npt.NDArray[np.float64]:
    """Features of a folder's images, one by one."""
    network: Any = FeatureExtractorInceptionV3("again", ["64"], feature_extractor_weights_path=_as_pickled(weights))
    found = []
    for path in sorted(folder.iterdir()):
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None]
        found.append(network(pixels)[0][0].double().numpy())
    return np.stack(found)


def _as_pickled(weights: Path) -> Path:
    path = weights.with_suffix(".pth")
    torch.save(load_file(weights), path)
    return path


def _gaussian(mean: float, variance: float, width: int = 64) -> Statistics:
    return Statistics(mean=np.full(width, mean), covariance=variance * np.eye(width), num_images=None)


def test_the_distance_of_two_gaussians_is_the_closed_form() -> None:
    # 64 times the squared distance of the means, (3 - 1)² = 4, and of the deviations, (2 - 1)² = 1.
    assert frechet_distance(_gaussian(1, 1), _gaussian(3, 4)) == pytest.approx(64 * 5)
    assert frechet_distance(_gaussian(1, 4), _gaussian(1, 4)) == pytest.approx(0, abs=1e-9)


def test_the_figure_is_that_of_a_direct_calculation(
    evaluated: Callable[..., int], weights: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    assert evaluated() == 0
    drawn, reference = (_directly(weights, folder) for folder in folders)
    covariances = np.cov(drawn.T), np.cov(reference.T)
    expected = np.square(drawn.mean(0) - reference.mean(0)).sum() + np.trace(
        sum(covariances) - 2 * sqrtm(covariances[0] @ covariances[1]).real
    )
    assert expected > 0.01
    assert _figure(tmp_path / "out") == pytest.approx(expected, rel=1e-3)
    assert evaluated(reference=folders[0]) == 0
    assert _figure(tmp_path / "out") == pytest.approx(0, abs=1e-3 * expected)  # of identical sets


def test_kept_statistics_serve_the_next_evaluation_and_follow_their_images(
    evaluated: Callable[..., int], tmp_path: Path
) -> None:
    reference, kept = _pictures(tmp_path / "mine", 3), tmp_path / "out" / "fid_reference.npz"
    evaluated(reference=reference)
    first, written = _figure(tmp_path / "out"), kept.stat().st_mtime_ns
    evaluated(reference=reference)
    assert kept.stat().st_mtime_ns == written
    copied = tmp_path / "copied.npz"
    copied.write_bytes(kept.read_bytes())
    assert evaluated(reference=copied) == 0
    assert _figure(tmp_path / "out") == pytest.approx(first, rel=1e-9)
    next(reference.iterdir()).unlink()
    evaluated(reference=reference)
    assert _figure(tmp_path / "out") != pytest.approx(first)


def test_images_of_many_sizes_are_brought_to_one(evaluated: Callable[..., int], tmp_path: Path) -> None:
    reference = _pictures(tmp_path / "mine", 1, sides=(24, 48))
    Image.fromarray(np.zeros((10, 20, 3), dtype=np.uint8)).save(reference / "small.png")
    (reference / "notes.txt").write_text("no image")
    (reference / "._hidden.png").write_bytes(b"no image")
    assert evaluated("--prompts.fid.resolution_px=16", reference=reference) == 0
    with np.load(tmp_path / "out" / "fid_reference.npz") as file:
        assert int(file["num_images"]) == 9
        assert json.loads(str(file["taken_by"]))["resolution_px"] == "16"


def _complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line; a slow machine shows progress bars above it."""
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error:"))
    return line


def test_references_that_cannot_be_used_are_one_line(
    evaluated: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = _pictures(tmp_path / "one", 1, number=1)
    broken = _pictures(tmp_path / "broken", 1)
    (broken / "a.png").write_bytes(b"no image")
    wide, other, taken = (tmp_path / f"{name}.npz" for name in ("wide", "other", "taken"))
    np.savez(wide, mu=np.zeros(2048), sigma=np.eye(2048))
    np.savez(other, mean=np.zeros(64))
    np.savez(taken, mu=np.zeros(64), sigma=np.eye(64), taken_by=json.dumps({"resolution_px": "256"}))
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, mu=np.array([{}]), sigma=np.eye(64))
    for reference, complaint in [
        (tmp_path / "nowhere", "there is no"),
        (mine, f"the reference {mine} has 1"),
        (broken, f"the reference image {broken / 'a.png'} cannot be read"),
        (wide, "is about 2048 features, the evaluation about 64"),
        (other, "is not a file of statistics"),
        (pickled, "is not a file of statistics"),
        (taken, "was computed with another resolution_px (256)"),
    ]:
        assert evaluated(reference=reference) == 2
        assert complaint in _complaint(capsys)


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("it was unpickled",))


def test_weights_are_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(UserError, match="is not safetensors"):
        find_weights(str(path)).read()
    with pytest.raises(UserError, match="there is no file"):
        find_weights(str(tmp_path / "none"))


def test_the_published_file_is_known_by_its_hash(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pickled = _as_pickled(weights)
    assert not find_weights(str(pickled)).is_published
    monkeypatch.setattr(fid_weights, "_PUBLISHED", hashlib.sha256(pickled.read_bytes()).hexdigest()[:8])
    found = find_weights(str(pickled))
    assert found.is_published
    assert found.read().keys() == load_file(weights).keys()


def test_pixarts_fid_is_next_to_ours_and_says_why_not_to_compare(folders: tuple[Path, Path]) -> None:
    settings = PromptsConfig(clip=None, fid=FidConfig(reference=str(folders[1])))
    benchmark = open_benchmark(EvaluateConfig(benchmark="prompts", images=str(folders[0]), out="", prompts=settings))
    (published,) = benchmark.published
    assert [published.metric] == list(benchmark.set_metrics)
    assert published.category == ALL
    assert comparability(published).startswith("no: it belongs to a special checkpoint")


def test_without_torch_fidelity_one_line_says_what_to_install(
    evaluated: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    assert evaluated() == 2
    assert "pip install 'torch-fidelity>=0.4'" in _complaint(capsys)


def test_weights_of_another_network_are_one_line(
    evaluated: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"layer.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert evaluated(f"--prompts.fid.weights={tmp_path / 'other.safetensors'}") == 2
    assert "does not have the weights of the Inception network" in _complaint(capsys)
