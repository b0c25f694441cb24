"""Edge maps: where the colours of an image change, white on black.

    blurred = image * [1 2 1] / 4, along rows and along columns                      (edges repeat the outermost pixel)
    gx, gy  = blurred * [-1 0 1] along one axis, [1 2 1] / 4 along the other         (Sobel)
    edge    = min(255, 2 max over R, G, B of sqrt(gx^2 + gy^2)), rounded

There are no thresholds, and nothing depends on the rest of the image. PixArt-delta uses HED, a trained detector; this filter
needs no weights. Source: Sobel and Feldman 1968.
Shapes: H x W pixels.
"""

import numpy as np
import numpy.typing as npt

_GAIN = 2.0
_SMOOTH = (0.25, 0.5, 0.25)
_DIFFERENCE = (-1.0, 0.0, 1.0)


def edge_map(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Edges (H, W) uint8 of an image (H, W, 3) uint8. Deterministic."""
    blurred = _filtered(_filtered(pixels.astype(np.float32), _SMOOTH, axis=0), _SMOOTH, axis=1)
    across = _filtered(_filtered(blurred, _DIFFERENCE, axis=1), _SMOOTH, axis=0)
    down = _filtered(_filtered(blurred, _DIFFERENCE, axis=0), _SMOOTH, axis=1)
    strength = np.sqrt(across**2 + down**2).max(axis=2)  # (H, W)
    edges: npt.NDArray[np.uint8] = np.minimum(_GAIN * strength, 255).round().astype(np.uint8)
    return edges


def _filtered(values: npt.NDArray[np.float32], weights: tuple[float, float, float], *, axis: int) -> npt.NDArray[np.float32]:
    """Values (H, W, C) with each replaced by the weighted sum of it and its two neighbours along an axis."""
    size = values.shape[axis]
    ends = [(1, 1) if index == axis else (0, 0) for index in range(values.ndim)]
    padded = np.pad(values, ends, mode="edge")
    parts = (np.float32(weight) * padded.take(range(start, start + size), axis=axis) for start, weight in enumerate(weights))
    total: npt.NDArray[np.float32] = sum(parts, start=np.zeros_like(values))
    return total
