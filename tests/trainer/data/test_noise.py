"""Noise of samples: the same for a sample in any batch, another for another seed, and normal."""

import math

import numpy as np
import pytest
import torch

from trainer.data.noise import device_normals, philox_4x32, sample_noise

CPU = torch.device("cpu")


def test_a_sample_draws_the_same_in_any_batch() -> None:
    whole = sample_noise((4, 3, 2), seed=7, positions=range(10, 16))
    part = sample_noise((4, 3, 2), seed=7, positions=[12, 15])
    for name in ("noise", "latent_noise", "quantiles", "dropout"):
        assert torch.equal(getattr(whole, name)[[2, 5]], getattr(part, name)), name
    other = sample_noise((4, 3, 2), seed=8, positions=[12])
    assert not torch.equal(other.noise, part.noise[:1])
    many = sample_noise((4, 8, 8), seed=0, positions=range(200))
    assert abs(float(many.noise.mean())) < 0.02 and abs(float(many.noise.std()) - 1) < 0.02
    assert abs(float((many.noise * many.latent_noise).mean())) < 0.02 and 0.4 < float(many.quantiles.mean()) < 0.6


def test_the_numbers_of_a_cpu_are_those_of_numpy() -> None:
    """A golden value, and the numbers that trainings of before drew: they resume bit for bit."""
    drawn = sample_noise((4, 3, 2), seed=7, positions=[12])
    source = np.random.Generator(np.random.Philox(key=np.array([7, 12], dtype=np.uint64)))
    quantile, dropout = source.random(2, dtype=np.float32)
    both = source.standard_normal((2, 4, 3, 2), dtype=np.float32)
    assert drawn.quantiles.item() == quantile and drawn.dropout.item() == dropout
    assert np.array_equal(drawn.noise[0].numpy(), both[0]) and np.array_equal(drawn.latent_noise[0].numpy(), both[1])


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_4x32_gives_the_published_words(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    """Source: the known answers of Random123 1.14, kat_vectors, philox4x32 10."""
    first, second, third, fourth = (torch.tensor([word]) for word in counter)
    assert tuple(word.item() for word in philox_4x32((first, second, third, fourth), key)) == words


def test_what_a_device_draws_is_normal_and_a_samples_own() -> None:
    many = device_normals((2, 4, 8, 8), seed=3, positions=range(400), device=CPU).double()
    assert many.isfinite().all()
    for moment, expected in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert abs(float((many**moment).mean()) - expected) < 6 * math.sqrt(96 / many.numel()), moment
    flat = many.flatten(1)
    assert abs(float((flat[:, 1:] * flat[:, :-1]).mean())) < 0.02 and abs(float((flat[1:] * flat[:-1]).mean())) < 0.02
    own = device_normals((2, 4, 8, 8), seed=3, positions=[5, 2**33 + 5], device=CPU).double()
    assert torch.equal(own[0], many[5]) and not torch.equal(own[0], own[1])
    assert not torch.equal(device_normals((2, 4, 8, 8), seed=3 + 2**32, positions=[5], device=CPU)[0].double(), many[5])
    assert device_normals((3, 1, 1), seed=0, positions=[1], device=CPU).shape == (1, 3, 1, 1)
