"""Micro-batches: from stored features to what a training step reads. Random numbers are counter-based: noise, timestep and
dropout of sample i depend on (seed, i) alone.

Shapes: B samples, C latent channels, h x w the sides of the latents.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.diffusion import Objective
from model.dit import Captions, DiTConfig
from model.text_encoder import TextEncoder
from model.vae import LatentDistribution, LatentScale
from trainer.features.store import FeatureBatch
from trainer.training.train_step import TrainPart


@dataclass(frozen=True, eq=False)
class Draws:
    """Of B samples, on the CPU, float32."""

    noise: Tensor
    """(B, C, h, w) what the network is to find."""
    latent_noise: Tensor
    """(B, C, h, w) that picks latents from the VAE's distribution."""
    quantiles: Tensor
    """(B,) in 0..1: of the objective's distribution of timesteps."""
    dropout: Tensor
    """(B,) in 0..1: below the share of class dropout, a sample loses its class."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How batches of one rung are prepared. Deterministic: everything random follows from the seed and the places."""

    network: DiTConfig
    objective: Objective
    scale: LatentScale
    device: torch.device
    seed: int
    class_dropout: float
    """Share of samples that lose their class; captions were dropped when they were chosen."""
    device_tokens: int
    """Patches of a part."""
    text_encoder: TextEncoder | None = None
    """Encodes captions that are not stored."""

    def part_size(self, bucket: tuple[int, int]) -> int:
        """Samples of a part, of latents with these sides."""
        tokens = (bucket[0] // self.network.patch_size) * (bucket[1] // self.network.patch_size)
        return max(1, self.device_tokens // tokens)

    def training_parts(self, batch: FeatureBatch, places: Sequence[int]) -> Iterator[TrainPart]:
        """The batch in parts that fit the device. places: of each sample, counted in images since the stage's start."""
        size = self.part_size(batch.bucket)
        captions = self.captions(batch)
        for start in range(0, len(places), size):
            rows = range(start, min(start + size, len(places)))
            draws = draw((batch.mean.shape[1], *batch.bucket), seed=self.seed, places=[places[row] for row in rows])
            yield TrainPart(
                latents=self.latents(batch, rows, draws.latent_noise),
                noise=self._move(draws.noise),
                timesteps=self._move(self.objective.timesteps_at(draws.quantiles).float()),
                captions=None if captions is None else self._captions(captions, rows),
                class_labels=self._labels(batch, rows, draws),
                sizes=self.sizes(batch, rows),
                is_last=rows.stop == len(places),
            )

    def whole(self, batch: FeatureBatch) -> TrainPart:
        """The batch in one part, at the means of its latents, without noise of its own: for validation."""
        rows = range(len(batch.keys))
        captions, labels = self.captions(batch), batch.class_labels
        latents = self.latents(batch, rows, torch.zeros(()))
        return TrainPart(
            latents=latents,
            noise=torch.zeros_like(latents),
            timesteps=torch.zeros(len(rows), device=self.device),
            captions=None if captions is None else captions.to(self.device),
            class_labels=None if labels is None else self._move(labels),
            sizes=self.sizes(batch, rows),
        )

    def captions(self, batch: FeatureBatch) -> Captions | None:
        """Stored, or encoded now; none where the network reads classes."""
        if self.network.conditioning == "class":
            return None
        if batch.captions is not None:
            return batch.captions
        assert self.text_encoder is not None and batch.texts is not None, "checked when the features were opened"
        return self.text_encoder.encode(batch.texts).to(dtype=torch.bfloat16)  # as they would be stored

    def latents(self, batch: FeatureBatch, rows: range, noise: Tensor) -> Tensor:
        """Drawn from the VAE's distribution with this noise, and scaled: (B, C, h, w) float32 on the device."""
        mean, log_variance = (self._move(values[rows.start : rows.stop]) for values in (batch.mean, batch.log_variance))
        return LatentDistribution(mean, log_variance).draw(self.scale, self._move(noise))

    def sizes(self, batch: FeatureBatch, rows: range) -> Tensor | None:
        """Original height and width (B, 2), where the network reads them."""
        return self._move(batch.sizes[rows.start : rows.stop].float()) if self.network.micro_conditioning else None

    def _labels(self, batch: FeatureBatch, rows: range, draws: Draws) -> Tensor | None:
        if self.network.conditioning != "class":
            return None
        assert batch.class_labels is not None, "checked when the features were opened"
        labels = batch.class_labels[rows.start : rows.stop]
        return self._move(torch.where(draws.dropout < self.class_dropout, self.network.num_classes, labels))

    def _captions(self, captions: Captions, rows: range) -> Captions:
        lengths = captions.lengths
        first, last = int(lengths[: rows.start].sum()), int(lengths[: rows.stop].sum())
        return Captions(tokens=captions.tokens[first:last], lengths=lengths[rows.start : rows.stop]).to(self.device)

    def _move(self, values: Tensor) -> Tensor:
        return values.to(self.device, non_blocking=True)


def draw(shape: tuple[int, int, int], *, seed: int, places: Sequence[int]) -> Draws:
    """Draws for latents of shape (C, h, w). `places` counts images since the start of the stage."""
    normals = np.empty((len(places), 2, *shape), dtype=np.float32)
    uniforms = np.empty((len(places), 2), dtype=np.float32)
    for row, place in enumerate(places):
        source = np.random.Generator(np.random.Philox(key=np.array([seed, place], dtype=np.uint64)))
        source.random(out=uniforms[row], dtype=np.float32)
        source.standard_normal(out=normals[row], dtype=np.float32)
    both, pair = torch.from_numpy(normals), torch.from_numpy(uniforms)
    return Draws(noise=both[:, 0], latent_noise=both[:, 1], quantiles=pair[:, 0], dropout=pair[:, 1])
