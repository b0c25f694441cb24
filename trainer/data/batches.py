"""Micro-batches: stored features as a training step reads them, with the noise of each sample (noise.py).

Shapes: B samples, C latent channels, h x w the sides of the latents.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from model.diffusion import Objective
from model.dit import Captions, DiTConfig, HiddenStates
from model.dit_config import RoutedBlocks
from model.encoders.text_encoder import TextEncoder
from model.encoders.vae import LatentDistribution, LatentScale
from model.layers.token_routing import TokenRoute
from trainer.data.noise import SampleNoise, sample_noise, token_ranks
from trainer.features.store import FeatureBatch
from trainer.features.tables import Int8Captions


@dataclass(frozen=True, eq=False, kw_only=True)
class MicroBatch:
    """Samples that the network sees at once, on its device."""

    latents: Tensor
    """(B, C, h, w) float32."""
    noise: Tensor
    """(B, C, h, w) float32."""
    timesteps: Tensor
    """(B,) in 0..1000."""
    captions: Captions | None = None
    class_labels: Tensor | None = None
    """(B,) int64; the number of classes means no class."""
    sizes: Tensor | None = None
    """(B, 2) original height and width in pixels, for micro-conditioning."""
    aspect_ratios: Tensor | None = None
    """(B, 1) height / width, likewise."""
    route: TokenRoute | None = None
    """Tokens that the routed blocks see; none: all blocks see all tokens."""
    loss_mask: Tensor | None = None
    """(B, 1, h, w) 1 at the latent pixels that the loss counts; none: it counts all."""
    teacher: Tensor | None = None
    """(B, N, F) float32, what a teacher sees in the clean image; none if it is not stored."""
    control: Tensor | None = None
    """(B, C, h, w) float32, latents of the control images; zeros where there is none for a sample; none: no control is
    trained."""
    is_last: bool = True
    """Last micro-batch of a step: gradients are all-reduced in its backward pass."""

    def predict(self, model: nn.Module, precision: torch.dtype, hidden: HiddenStates | None = None) -> "Prediction":
        """The network with these conditions bound; its forward pass fills `hidden`."""
        return Prediction(model, self, precision, hidden)

    def seen(self, values: Tensor, *, like: Tensor) -> Tensor:
        """Values (B, N, C) of all tokens, or of those alone that `like` (B, K, D) is of, where it is behind a routed block."""
        return self.route.take(values) if self.route is not None and values.shape[1] > like.shape[1] else values


@dataclass(frozen=True, eq=False)
class Prediction:
    """A network with its conditions bound, as objectives call it: noisy latents and timesteps to a prediction."""

    model: nn.Module
    batch: MicroBatch
    precision: torch.dtype
    hidden: HiddenStates | None = None

    def __call__(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        """(B, C or 2 C, h, w)."""
        with torch.autocast(latents.device.type, dtype=self.precision, enabled=self.precision != torch.float32):
            return self.model(  # type: ignore[no-any-return]
                latents,
                timesteps,
                captions=self.batch.captions,
                class_labels=self.batch.class_labels,
                sizes=self.batch.sizes,
                aspect_ratios=self.batch.aspect_ratios,
                hidden=self.hidden,
                route=self.batch.route,
                control=self.batch.control,
            )


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Makes a rung's micro-batches of stored features. Deterministic: what is random follows from seed and positions."""

    network: DiTConfig
    objective: Objective
    scale: LatentScale
    device: torch.device
    seed: int
    class_dropout: float
    """Share of samples that lose their class; captions were dropped when they were chosen."""
    device_tokens: int
    """Patches of a micro-batch, at most."""
    text_encoder: TextEncoder | None = None
    """Encodes captions that are not stored."""
    original_aspect_ratio: bool = False
    """Whether micro-conditioning reads the aspect ratio of the original image; else that of its bucket."""
    group: int = 1
    """Samples that a loss looks at together: a micro-batch has a multiple of them."""
    routed: RoutedBlocks | None = None
    """Blocks that see a part of the tokens; behind them the loss counts these alone if no block follows (masking)."""
    control_dropout: float = 0.0
    """Share of samples whose control image is blank."""
    routed_until: int = 0
    """Images of the stage after which all blocks see all tokens."""

    def micro_batch_size(self, bucket: tuple[int, int]) -> int:
        """Samples of a micro-batch, of latents with these sides: at most what fits device_tokens, and one group at least."""
        height, width = self._grid(bucket)
        tokens = height * width
        return max(1, self.device_tokens // tokens // self.group) * self.group

    def micro_batches(self, batch: FeatureBatch, positions: Sequence[int]) -> Iterator[MicroBatch]:
        """Splits a batch to fit the device. `positions`: of each sample, counted in images since the start of the stage."""
        size = self.micro_batch_size(batch.bucket)
        captions = self.captions(batch)
        for start in range(0, len(positions), size):
            rows = range(start, min(start + size, len(positions)))
            shape = (batch.mean.shape[1], *batch.bucket)
            drawn = sample_noise(shape, seed=self.seed, positions=positions[rows.start : rows.stop], device=self.device)
            yield MicroBatch(
                latents=self.latents(batch, rows, drawn.latent_noise),
                noise=self._move(drawn.noise),
                timesteps=self._move(self.objective.timesteps_at(drawn.quantiles).float()),
                captions=None if captions is None else self._captions(captions, rows),
                class_labels=self._labels(batch, rows, drawn),
                sizes=self.sizes(batch, rows),
                aspect_ratios=self.aspect_ratios(batch, rows),
                route=(route := self.route(batch.bucket, positions[rows.start : rows.stop])),
                loss_mask=self._loss_mask(route, batch.bucket),
                teacher=None if batch.teacher is None else self._move(batch.teacher[rows.start : rows.stop]).float(),
                control=self.control(batch, rows, dropped=drawn.dropout < self.control_dropout),
                is_last=rows.stop == len(positions),
            )

    def whole(self, batch: FeatureBatch) -> MicroBatch:
        """The whole batch at the means of its latents, without noise: for validation."""
        rows = range(len(batch.keys))
        captions, labels = self.captions(batch), batch.class_labels
        latents = self.latents(batch, rows, torch.zeros(()))
        return MicroBatch(
            latents=latents,
            noise=torch.zeros_like(latents),
            timesteps=torch.zeros(len(rows), device=self.device),
            captions=None if captions is None else self._captions(captions, rows),
            class_labels=None if labels is None else self._move(labels),
            sizes=self.sizes(batch, rows),
            aspect_ratios=self.aspect_ratios(batch, rows),
            control=self.control(batch, rows),
        )

    def control(self, batch: FeatureBatch, rows: range, *, dropped: Tensor | None = None) -> Tensor | None:
        """Scaled latents of the control images (B, C, h, w) float32, zeros for those `dropped` (B,); none without a control."""
        if batch.control is None:
            return None
        latents = self.scale.to_latents(self._move(batch.control[rows.start : rows.stop]).float())
        return latents if dropped is None else latents.masked_fill(self._move(dropped)[:, None, None, None], 0.0)

    def route(self, bucket: tuple[int, int], positions: Sequence[int]) -> TokenRoute | None:
        """Tokens that the routed blocks see of samples at these positions; none if all blocks see all."""
        if self.routed is None or positions[0] >= self.routed_until:  # a whole number of steps: all samples of one agree
            return None
        height, width = self._grid(bucket)
        ranks = token_ranks(height * width, seed=self.seed, positions=positions)
        found = TokenRoute.by_rank(ranks, self.routed)
        return replace(found, kept=self._move(found.kept))

    def captions(self, batch: FeatureBatch) -> Captions | Int8Captions | None:
        """As they are stored, or encoded now; none if the network reads classes."""
        if self.network.conditioning == "class":
            return None
        if batch.captions is not None:
            return batch.captions
        assert self.text_encoder is not None and batch.texts is not None, "checked when the features were opened"
        return self.text_encoder.encode(batch.texts).to(dtype=torch.bfloat16)  # as they would be stored

    def latents(self, batch: FeatureBatch, rows: range, noise: Tensor) -> Tensor:
        """Drawn from the VAE's distribution with this noise, and scaled: (B, C, h, w) float32 on the device."""
        mean = self._move(batch.mean[rows.start : rows.stop])
        log_variance = None if batch.log_variance is None else self._move(batch.log_variance[rows.start : rows.stop])
        return LatentDistribution(mean, log_variance).draw(self.scale, self._move(noise))

    def sizes(self, batch: FeatureBatch, rows: range) -> Tensor | None:
        """Original height and width (B, 2), where the network reads them."""
        return self._move(batch.sizes[rows.start : rows.stop].float()) if self.network.micro_conditioning else None

    def aspect_ratios(self, batch: FeatureBatch, rows: range) -> Tensor | None:
        """Height / width (B, 1), where the network reads it; the bucket's exactly, which the authors round to two decimals."""
        sizes = self.sizes(batch, rows)
        if sizes is None:
            return None
        if self.original_aspect_ratio:
            return sizes[:, :1] / sizes[:, 1:]
        return torch.full_like(sizes[:, :1], batch.bucket[0] / batch.bucket[1])

    def _grid(self, bucket: tuple[int, int]) -> tuple[int, int]:
        return bucket[0] // self.network.patch_size, bucket[1] // self.network.patch_size

    def _loss_mask(self, route: TokenRoute | None, bucket: tuple[int, int]) -> Tensor | None:
        if route is None or route.blocks.after:
            return None
        return route.loss_mask(self._grid(bucket), self.network.patch_size)

    def _labels(self, batch: FeatureBatch, rows: range, drawn: SampleNoise) -> Tensor | None:
        if self.network.conditioning != "class":
            return None
        assert batch.class_labels is not None, "checked when the features were opened"
        labels = batch.class_labels[rows.start : rows.stop]
        return self._move(torch.where(drawn.dropout < self.class_dropout, self.network.num_classes, labels))

    def _captions(self, captions: Captions | Int8Captions, rows: range) -> Captions:
        """Those of the rows, on the device; int8 is expanded there."""
        lengths = captions.lengths
        first, last = int(lengths[: rows.start].sum()), int(lengths[: rows.stop].sum())
        tokens, lengths = captions.tokens[first:last], lengths[rows.start : rows.stop]
        if isinstance(captions, Int8Captions):
            return Int8Captions(tokens, captions.scales[first:last], lengths).expanded(self.device)
        return Captions(tokens=tokens, lengths=lengths).to(self.device)

    def _move(self, values: Tensor) -> Tensor:
        """On the device, from page-locked memory, so that the copy is not waited for."""
        if self.device.type == "cuda" and values.device.type == "cpu" and not values.is_pinned():
            values = values.pin_memory()
        return values.to(self.device, non_blocking=True)
