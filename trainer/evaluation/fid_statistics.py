"""Mean and covariance of features: from images, from a file as other tools write it, and kept for the next evaluation."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from foundry.errors import UserError
from foundry.storage.new_files import new_file


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Of D features of a set of images."""

    mean: npt.NDArray[np.float64]  # (D,)
    covariance: npt.NDArray[np.float64]  # (D, D)
    num_images: int | None
    """None where a file does not say."""

    @classmethod
    def of(cls, features: npt.NDArray[np.float64]) -> "Statistics":
        """Of features (N, D), N of 2 or more; the covariance is the unbiased one."""
        covariance = np.atleast_2d(np.cov(features, rowvar=False))
        return cls(mean=features.mean(axis=0), covariance=covariance, num_images=len(features))


def read_statistics(path: Path, *, width: int, taken_by: Mapping[str, str]) -> Statistics:
    """From an .npz with `mu` and `sigma`. Raises UserError for another file, another width, or one that was taken otherwise."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in ("mu", "sigma")}
            said = json.loads(str(file["taken_by"])) if "taken_by" in file else {}
            num_images = int(file["num_images"]) if "num_images" in file else None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is no file of statistics, an .npz with mu and sigma ({error}): give a folder of images"
        ) from error
    mean, covariance = found["mu"].astype(np.float64), found["sigma"].astype(np.float64)
    if mean.shape != (width,) or covariance.shape != (width, width):
        raise UserError(f"{path} is about {mean.size} features, the evaluation about {width}: see --prompts.fid.features")
    if differing := [name for name, value in taken_by.items() if said.get(name, value) != value]:
        raise UserError(f"{path} was taken with another {differing[0]} ({said[differing[0]]}): take it anew from its images")
    return Statistics(mean=mean, covariance=covariance, num_images=num_images)


def kept_statistics(
    path: Path, files: Sequence[Path], taken_by: Mapping[str, str], take: Callable[[], Statistics]
) -> Statistics:
    """Of image files, as `path` keeps them if it was made of the same files in the same way; else taken anew and kept."""
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
