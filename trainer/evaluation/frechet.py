"""The Fréchet distance between two sets of features, each taken for a Gaussian.

Source: Heusel et al. 2017 (arXiv 1706.08500), equation 6: |m1 - m2|² + trace(C1 + C2 - 2 (C1 C2)^½).
"""

import numpy as np
import numpy.typing as npt


def frechet_distance(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Of features (N, D) and (M, D). Raises ValueError for a set of fewer than two. It is biased: compare equal numbers only.

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
