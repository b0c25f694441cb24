"""FID: the Fréchet distance between generated and reference images, by the Inception network that FID is defined with.

The network and the formula are torch-fidelity's, which agrees with the first implementation. The number falls with the number
of images, and moves with every way of resizing: compare figures of equal numbers, references and resolutions only.

Source: Heusel et al. 2017 (arXiv 1706.08500).
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from foundry.errors import UserError, one_line
from foundry.images.decoding import DecodeLimits, decode_image
from foundry.reporting.progress import tracked
from foundry.storage.file_kinds import is_ignored_path, is_image
from foundry.storage.model_files import files_fingerprint
from foundry.units.rejection import ImageError
from trainer.evaluation.benchmark import SetMetric
from trainer.evaluation.config import FidConfig
from trainer.evaluation.frechet import Statistics, kept_statistics, read_statistics
from trainer.evaluation.judges.models import Placement, check_finite

if TYPE_CHECKING:
    import torch

    from trainer.evaluation.config import EvaluateConfig


FID = "fid"
REFERENCE = "fid_reference.npz"
_BATCH = 32
_PUBLISHED = "6726825d"
"""The SHA-256 of weights-inception-2015-12-05-6726825d.pth begins so; pt_inception-2015-12-05-6726825d.pth is the same file."""


@dataclass(frozen=True, kw_only=True)
class InceptionWeights:
    """Weights that can be read."""

    path: Path | None
    """None: fetched, or found in torch.hub's folder."""
    name: str
    is_published: bool
    fingerprint: str

    def read(self) -> "dict[str, torch.Tensor]":
        """The state dict. Raises UserError if it is unavailable."""
        import torch

        if self.path is None:
            return _fetched()
        if self.is_published:
            published: dict[str, torch.Tensor] = torch.load(self.path, weights_only=True, map_location="cpu")
            return published
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self.path)
        except SafetensorError as error:
            raise UserError(
                f"{self.path} is not safetensors ({error}), nor the published file, whose SHA-256 begins with {_PUBLISHED}"
            ) from None


class Fid:
    """The distance of images from a reference."""

    def __init__(self, config: FidConfig, weights: InceptionWeights, *, out: Path, evaluate: "EvaluateConfig") -> None:
        self.config = config
        self.weights = weights
        self.out = out
        self.evaluate = evaluate

    def __call__(self, images: Iterable[npt.NDArray[np.uint8]]) -> float:
        """FID of two images or more. Raises UserError for a reference that cannot be read or was taken by another network."""
        reference = self._reference()
        return frechet_distance(self._statistics(images, "the evaluation"), reference)

    @cached_property
    def _network(self) -> "torch.nn.Module":
        return _network(self.weights, self.config.features, Placement.of(self.evaluate).device)

    def _reference(self) -> Statistics:
        assert self.config.reference is not None
        path = Path(self.config.reference).expanduser()
        taken_by = {"network": self.weights.fingerprint, "features": self.config.features}
        taken_by["resolution_px"] = str(self.config.resolution_px)
        if not path.is_dir():
            return read_statistics(path, width=int(self.config.features), taken_by=taken_by)
        files = sorted(file for file in path.rglob("*") if file.is_file() and _is_reference(file.relative_to(path)))
        images = (_decoded(file) for file in tracked(files, "reference", total=len(files)))
        return kept_statistics(self.out / REFERENCE, files, taken_by, lambda: self._statistics(images, f"the reference {path}"))

    def _statistics(self, images: Iterable[npt.NDArray[np.uint8]], whose: str) -> Statistics:
        features = list(_features(self._network, map(self._prepared, images)))
        num_images = sum(map(len, features))
        if num_images < 2:
            raise UserError(
                f"a Fréchet distance needs two images or more, {whose} has {num_images}: give more",
                setting="prompts.fid.reference",
            )
        return Statistics.of(np.concatenate(features))

    def _prepared(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        side = self.config.resolution_px
        if side is None:
            return pixels
        return np.asarray(ImageOps.fit(Image.fromarray(pixels), (side, side), Image.Resampling.LANCZOS))


def fid_metrics(config: FidConfig, evaluate: "EvaluateConfig") -> Mapping[str, SetMetric]:
    """FID by name, if there is a reference. By another network or layer it has another name."""
    if config.reference is None:
        return {}
    if not Path(config.reference).expanduser().exists():
        raise UserError(
            f"there is no {config.reference}: give a folder of images, or statistics (.npz)",
            setting="prompts.fid.reference",
        )
    if find_spec("torch_fidelity") is None:
        raise UserError("FID needs torch-fidelity, which is not installed: pip install 'torch-fidelity>=0.4'")
    weights = find_weights(config.weights)
    name = FID if weights.is_published else f"frechet_distance_by_{weights.name}"
    layer = "" if config.features == "2048" else f"_{config.features}"
    fid = Fid(config, weights, out=Path(evaluate.out), evaluate=evaluate)
    version = (
        f"{weights.fingerprint} features {config.features} resolution_px {config.resolution_px} reference {config.reference}"
    )
    return {name + layer: SetMetric(version=version, measure=fid)}


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Distance of two Gaussians: |m1 - m2|² + trace(C1 + C2 - 2 (C1 C2)^½)."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    both = [{"mu": one.mean, "sigma": one.covariance} for one in (a, b)]
    return max(0.0, float(fid_statistics_to_metric(*both, verbose=False)[KEY_METRIC_FID]))


def find_weights(path: str | None) -> InceptionWeights:
    """Weights from a file, or the published ones. Raises UserError if the file does not exist."""
    if path is None:
        return InceptionWeights(path=None, name="the published network", is_published=True, fingerprint=_PUBLISHED)
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"there is no file {file}: give the published .pth or safetensors", setting="prompts.fid.weights")
    with file.open("rb") as opened:
        is_published = hashlib.file_digest(opened, "sha256").hexdigest().startswith(_PUBLISHED)
    fingerprint = _PUBLISHED if is_published else files_fingerprint([file])
    return InceptionWeights(path=file, name=file.stem, is_published=is_published, fingerprint=fingerprint)


def _network(weights: InceptionWeights, features: str, device: str) -> "torch.nn.Module":
    import torch
    from torch_fidelity import FeatureExtractorInceptionV3

    # It reads its weights by an unpickling of anything from a path: so it gets a buffer of what was read safely.
    buffer = io.BytesIO()
    torch.save(weights.read(), buffer)
    buffer.seek(0)
    try:
        network: Any = FeatureExtractorInceptionV3("inception", [features], feature_extractor_weights_path=buffer)
    except RuntimeError as error:
        message = one_line(error, limit=200)
        raise UserError(
            f"{weights.name} does not have the weights of the Inception network of torch-fidelity ({message}): give the "
            f"published "
            ".pth, or safetensors of it",
            setting="prompts.fid.weights",
        ) from error
    moved: torch.nn.Module = network.to(device)
    return moved


def _features(network: "torch.nn.Module", images: Iterable[npt.NDArray[np.uint8]]) -> Iterator[npt.NDArray[np.float64]]:
    """Features (N, D) of some images at a time, those of one size together."""
    import torch

    device = next(network.parameters()).device
    for _, of_one_size in groupby(images, key=np.shape):
        while batch := list(islice(of_one_size, _BATCH)):
            pixels = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).to(device)  # (N, 3, H, W)
            with torch.inference_mode():
                (features,) = network(pixels)  # (N, D)
            check_finite(features, name="the Inception network of FID")
            yield features.double().cpu().numpy()


def _is_reference(path: Path) -> bool:
    return is_image(path.name) and not is_ignored_path(str(path))


def _decoded(file: Path) -> npt.NDArray[np.uint8]:
    try:
        return decode_image(file.read_bytes(), limits=DecodeLimits()).pixels
    except (OSError, ImageError) as error:
        raise UserError(f"the reference image {file} cannot be read ({error}): repair it or remove it") from error


def _fetched() -> "dict[str, torch.Tensor]":
    from torch.hub import load_state_dict_from_url
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    try:
        weights: dict[str, torch.Tensor] = load_state_dict_from_url(
            URL_INCEPTION_V3, map_location="cpu", check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the Inception network cannot be downloaded ({' '.join(str(error).split())[:200]}): fetch {URL_INCEPTION_V3} "
            "elsewhere, and give the file",
            setting="prompts.fid.weights",
        ) from None
    return weights
