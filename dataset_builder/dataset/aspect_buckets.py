"""The 40 aspect ratios (height / width) into which images are sorted, so that those of a batch have one shape.

Source: PixArt-alpha, section 2.3 (40 buckets from 0.25 to 4); the ratios are those of diffusers' `ASPECT_RATIO_2048_BIN`, the
one table there that has all 40.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ASPECT_RATIOS = (
    *("0.25", "0.26", "0.27", "0.28", "0.32", "0.33", "0.35", "0.4", "0.42", "0.48"),
    *("0.5", "0.52", "0.57", "0.6", "0.68", "0.72", "0.78", "0.82", "0.88", "0.94"),
    *("1.0", "1.07", "1.13", "1.21", "1.29", "1.38", "1.46", "1.67", "1.75", "2.0"),
    *("2.09", "2.4", "2.5", "2.89", "3.0", "3.11", "3.62", "3.75", "3.88", "4.0"),
)


def nearest_ratios(heights: "NDArray[np.int32]", widths: "NDArray[np.int32]") -> "NDArray[np.intp]":
    """The place in ASPECT_RATIOS of the nearest ratio to each image's, (N,); the smaller one where two are as near."""
    import numpy as np

    ratios = np.array([float(ratio) for ratio in ASPECT_RATIOS])
    return np.searchsorted((ratios[1:] + ratios[:-1]) / 2, heights / widths)
