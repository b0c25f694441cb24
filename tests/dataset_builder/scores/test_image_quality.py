"""Sharpness and the perceptual hash tell blurred pictures and copies."""

import numpy as np
from PIL import ImageFilter

from dataset_builder.scores.image_quality import perceptual_hash, sharpness
from tests.dataset_builder.tiny_clip import picture


def test_a_blurred_picture_is_less_sharp_and_a_small_copy_looks_the_same() -> None:
    original = picture(3)
    blurred = original.filter(ImageFilter.GaussianBlur(4))
    assert sharpness(np.array(blurred)) < sharpness(np.array(original)) / 2
    assert sharpness(np.zeros((2, 9, 3), np.uint8)) == 0
    codes = [perceptual_hash(np.array(image)) for image in (original, original.resize((45, 30)), picture(4))]
    distance = [int(np.bitwise_count(np.uint64((codes[0] ^ code) & (2**64 - 1)))) for code in codes[1:]]
    assert distance[0] <= 4
    assert distance[1] > 16
