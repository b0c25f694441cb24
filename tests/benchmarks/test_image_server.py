"""The load test compares what it says: images of the same seeds, within a round."""

import numpy as np
import pytest

from benchmarks.image_server import Timed, _figures


def side(*seconds: float, value: int = 100) -> list[Timed]:
    images = [np.full((2, 2, 3), value, np.uint8)] * 4
    return [Timed(seconds=one, each_s=[one / 4, one / 4, one / 4, one], images=images) for one in seconds]


def test_ratios_are_of_a_round_and_pixels_of_a_seed() -> None:
    figures = _figures({"loop": side(8, 12, 8), "1": side(8, 12, 8), "8": side(4, 4, 2, value=97), "32": side(2, 3, 8)})
    assert figures["loop_images_per_s"] == figures["images_per_s_1"] == 0.5
    assert (figures["throughput_ratio_1"], figures["throughput_ratio_8"], figures["throughput_ratio_32"]) == (1, 3, 4)
    assert figures["p50_s_8"] == pytest.approx(1) and figures["p95_s_8"] > 3
    assert figures["largest_difference"] == 3
