"""Backgrounds of the small world: ten light colours, each in two tones, in four patterns.

All are light, since OpenMoji's outlines are black. The patterns have a fixed phase and a period of 16 pixels, so that a
network of few tokens can draw them, and they are shifted against a grid of 8 pixels, so that every patch of a vision
tower sees an edge.
"""

import functools

import numpy as np
import numpy.typing as npt

IMAGE_SIZE_PX = 64
PERIOD_PX = 16
_DOT_RADIUS_PX = 4.0

# Colour -> (main tone, second tone), sRGB.
TONES = {
    "white": ((250, 250, 250), (222, 222, 226)),
    "gray": ((176, 178, 184), (146, 148, 156)),
    "pink": ((255, 188, 212), (246, 148, 186)),
    "red": ((240, 128, 120), (222, 96, 92)),
    "orange": ((255, 196, 128), (248, 166, 84)),
    "yellow": ((255, 240, 150), (244, 218, 92)),
    "green": ((168, 224, 140), (130, 200, 104)),
    "teal": ((118, 208, 198), (80, 180, 172)),
    "blue": ((146, 194, 250), (106, 160, 234)),
    "purple": ((206, 176, 244), (176, 140, 226)),
}
COLORS = tuple(TONES)
PATTERNS = ("plain", "striped", "dotted", "checkered")


@functools.cache
def background_pixels(color: str, pattern: str) -> npt.NDArray[np.uint8]:
    """One background, uint8 RGB of shape (64, 64, 3), read-only."""
    second = _second_tone_share(pattern)[..., None]
    main_tone, second_tone = (np.array(tone, dtype=np.float64) for tone in TONES[color])
    pixels = np.round(main_tone * (1 - second) + second_tone * second).astype(np.uint8)
    pixels.setflags(write=False)
    return pixels


def _second_tone_share(pattern: str) -> npt.NDArray[np.float64]:
    """The share of the second tone in each pixel, in 0..1, shape (64, 64)."""
    y, x = np.mgrid[:IMAGE_SIZE_PX, :IMAGE_SIZE_PX]
    half, shift = PERIOD_PX // 2, PERIOD_PX // 4
    column, row = (x + shift) // half % 2, (y + shift) // half % 2
    to_dot = np.hypot((x + 0.5) % PERIOD_PX - half, (y + 0.5) % PERIOD_PX - half)
    shares = {
        "plain": np.zeros_like(to_dot),
        "striped": column,
        "dotted": np.clip(_DOT_RADIUS_PX + 0.5 - to_dot, 0.0, 1.0),
        "checkered": column ^ row,
    }
    return np.asarray(shares[pattern], dtype=np.float64)
