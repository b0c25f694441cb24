"""Image scores that need no model: sharpness, and a perceptual hash of 64 bits."""

import numpy as np
import numpy.typing as npt

MEASURED_SIDE_PX = 512
"""The shorter side at which images are measured; smaller ones are measured as they are, since enlarging adds no detail."""


def sharpness(pixels: npt.NDArray[np.uint8]) -> float:
    """The variance of the Laplacian of the brightness (0 to 255); low for blurred or plain images. pixels: (H, W, 3).

    Comparable only between images of about the same size: see MEASURED_SIDE_PX. 0 for an image without inner pixels.
    Source: Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000; brightness: ITU-R BT.601.
    """
    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)  # (H, W)
    if min(grey.shape) < 3:
        return 0.0
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    laplacian = around - 4 * grey[1:-1, 1:-1]  # (H - 2, W - 2)
    return float(laplacian.var(dtype=np.float64))


def perceptual_hash(pixels: npt.NDArray[np.uint8]) -> int:
    """The 64 bits of imagehash's pHash as a signed integer, the first bit its sign. pixels: (H, W, 3).

    Images that look alike differ in few bits; rescaled and recompressed copies mostly in 0 to 4.
    """
    import imagehash
    from PIL import Image

    bits = imagehash.phash(Image.fromarray(pixels)).hash  # (8, 8)
    return int(np.packbits(bits).view(">i8")[0])
