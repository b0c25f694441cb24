"""Noise of samples: the same for a sample in any batch, another for another seed, and normal."""

import torch

from trainer.data.noise import sample_noise


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
