"""Fréchet distance between two sets of features, each taken for a Gaussian; and the mean and covariance that it is made of.

Source: Heusel et al. 2017 (arXiv 1706.08500), equation 6: |m1 - m2|² + trace(C1 + C2 - 2 (C1 C2)^½).
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from foundry.errors import UserError, one_line
from foundry.storage.folder import new_file


def frechet_distance(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Fréchet distance of features (N, D) and (M, D). Raises ValueError for a set of fewer than two. It is biased: compare
    equal numbers only.

    The trace of (C1 C2)^½ is the sum of the singular values of R1 R2ᵀ, where C = Rᵀ R: exact also where C is singular.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a Fréchet distance needs two images or more in each set, found {len(a)} and {len(b)}")
    means = [features.mean(axis=0) for features in (a, b)]
    spreads = [(features - mean) / np.sqrt(len(features) - 1) for features, mean in zip((a, b), means, strict=True)]
    first, second = (np.asarray(np.linalg.qr(spread, mode="r")) for spread in spreads)
    shared = float(np.linalg.svd(first @ second.T, compute_uv=False).sum())
    own = sum(float(np.square(spread).sum()) for spread in spreads)
    return float(max(0.0, np.square(means[0] - means[1]).sum() + own - 2 * shared))


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean and covariance of D features of a set of images."""

    mean: npt.NDArray[np.float64]  # (D,)
    covariance: npt.NDArray[np.float64]  # (D, D)
    num_images: int | None
    """None where a file does not say."""

    @classmethod
    def of(cls, features: npt.NDArray[np.float64]) -> "Statistics":
        """Statistics of features (N, D), N of 2 or more; the covariance is the unbiased one."""
        covariance = np.atleast_2d(np.cov(features, rowvar=False))
        return cls(mean=features.mean(axis=0), covariance=covariance, num_images=len(features))


def read_statistics(path: Path, *, width: int, taken_by: Mapping[str, str]) -> Statistics:
    """Reads an .npz with `mu` and `sigma`. Raises UserError for another file or width, or one computed in another way."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: np.asarray(file[name], np.float64) for name in ("mu", "sigma")}
            said = json.loads(str(file["taken_by"])) if "taken_by" in file else {}
            num_images = int(file["num_images"]) if "num_images" in file else None
    except Exception as error:  # damaged bytes make numpy, zipfile and zlib raise anything, MemoryError among it
        raise UserError(
            f"{path} is not a file of statistics, an .npz with mu and sigma ({one_line(error)}): give a folder of images"
        ) from error
    mean, covariance = found["mu"], found["sigma"]
    if mean.shape != (width,) or covariance.shape != (width, width):
        raise UserError(
            f"{path} is about {mean.size} features, the evaluation about {width}: choose the layer",
            setting="prompts.fid.features",
        )
    if differing := [name for name, value in taken_by.items() if said.get(name, value) != value]:
        raise UserError(
            f"{path} was computed with another {differing[0]} ({said[differing[0]]}): compute it again from its images"
        )
    return Statistics(mean=mean, covariance=covariance, num_images=num_images)


def kept_statistics(
    path: Path, files: Sequence[Path], taken_by: Mapping[str, str], take: Callable[[], Statistics]
) -> Statistics:
    """Statistics of image files: those kept in `path` if made from the same files in the same way, else computed and kept."""
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    made_of = hashlib.sha256(json.dumps([stats, dict(taken_by)]).encode()).hexdigest()
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            if str(file["made_of"]) == made_of:
                return Statistics(mean=file["mu"], covariance=file["sigma"], num_images=int(file["num_images"]))
    taken = take()
    with new_file(path) as partial, partial.open("wb") as target:
        np.savez(
            target,
            mu=taken.mean,
            sigma=taken.covariance,
            num_images=np.array(taken.num_images),
            made_of=np.array(made_of),
            taken_by=np.array(json.dumps(dict(taken_by))),
        )
    return taken
