"""The standard errors of VN and DN are those that repeated samples of images show."""

import numpy as np
import pytest

from captioner.comparison.density import _LEFT_OUT, _jackknife
from captioner.comparison.measures import NUM_PARTS
from dataset_builder.concepts.density import VALID_ABOVE


def test_every_part_is_left_out_equally_often() -> None:
    assert np.bincount(np.ravel(_LEFT_OUT)).tolist() == [len(_LEFT_OUT[0])] * NUM_PARTS


@pytest.mark.parametrize(("num_nouns", "num_images"), [(3000, 1000), (20_000, 4000)])
def test_the_jackknife_tells_the_spread_over_samples(num_nouns: int, num_images: int) -> None:
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, num_nouns + 1)
    cumulated = np.cumsum(share / share.sum())
    values, errors = [], []
    for _ in range(80):
        said = np.searchsorted(cumulated, rng.random((num_images, 10))).clip(0, num_nouns - 1)
        parts = np.stack([np.bincount(said[part::NUM_PARTS].ravel(), minlength=num_nouns) for part in range(NUM_PARTS)])
        counts = np.stack([parts.sum(0), *(parts.sum(0) - parts[list(left)].sum(0) for left in _LEFT_OUT)])
        sizes = np.stack([(counts > VALID_ABOVE).sum(1), (counts > 0).sum(1)]).astype(float)
        values.append(sizes[:, 0])
        errors.append([_jackknife(row, num_images=num_images).error for row in sizes])
    spread, error = np.std(values, axis=0), np.mean(np.array(errors, float), axis=0)
    assert (error > 0.8 * spread).all() and (error < 1.6 * spread).all(), (spread, error)


def test_few_images_have_no_error() -> None:
    assert _jackknife(np.arange(21.0), num_images=39).error is None
    assert _jackknife(np.arange(21.0), num_images=40).error is not None
