"""One unit of features: read and crop the images, encode them and their captions, write, commit.

The steps run on different workers (foundry/units/ray_driver.py). An image that cannot be used becomes a rejected row.

Shapes: n samples of the unit, C latent channels, h x w the sides of the latents, T tokens of all captions, F channels of T5.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from foundry.errors import UserError
from foundry.hardware import AUTO, Dtype, Halving, own_device, resolve_dtype
from foundry.images.ahead.extents import ExtentCache
from foundry.images.ahead.reading import read_ahead
from foundry.images.decoding import DecodeLimits
from foundry.images.loading import all_rejected, read_image
from foundry.images.reader import ImageReader
from foundry.images.web.settings import WebSettings
from foundry.storage.folder import Folder
from foundry.units.commits import Commit, CommittedFile, Unit, commit_unit, read_unit
from foundry.units.rejection import Failure, ImageError
from model.control.edges import edge_map
from model.encoders.caption_template import PLACE
from model.encoders.frozen_parts import FrozenPart, find_part, stored_bytes
from model.encoders.text_encoder import TextEncoder, TextEncoderConfig, load_text_encoder
from model.encoders.vae import VAE, LatentDistribution, LatentScale, VAEConfig, load_vae, states_scale
from model.formats.checkpoint import PartConfig
from model.generation.resolution import fit
from trainer.features.buckets import Pixels, Size, decoding_side_px, to_signed
from trainer.features.info import FeaturesInfo
from trainer.features.plan import PlannedUnit
from trainer.features.tables import SampleFacts, captions_table, latents_table

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from model.dit import Captions

LATENTS, CAPTIONS, REJECTED = "latents", "captions", "rejected"


@dataclass(frozen=True, kw_only=True)
class FeatureUnit(PlannedUnit):
    """A unit of the plan with the resolutions at which it is still to be made."""

    resolutions: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Payload:
    """The input of a replica: pixels by resolution, (n, H, W, 3) uint8, and all caption variants of all samples, in order."""

    pixels: Mapping[int, Pixels]
    texts: Sequence[str]
    control: Mapping[int, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """Control images likewise, (n, H, W)."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The result of reading: usable samples in the order of the payload, and rows of index.REJECTED."""

    samples: list[SampleFacts]
    rejected: list[dict[str, Any]]
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Output:
    """Latents by resolution, (n, C, h, w) float32, and features of captions in the order of the payload; seconds by encoder."""

    latents: Mapping[int, LatentDistribution]
    captions: "Captions | None"
    seconds: Mapping[str, float]
    control: "Mapping[int, torch.Tensor]" = field(default_factory=dict)
    """Latents of control images likewise, the means."""


@dataclass(frozen=True)
class Engine:
    """The models of a replica."""

    vae: VAE
    text_encoder: TextEncoder | None
    vae_batches: Halving = field(default_factory=Halving)


@dataclass(frozen=True, kw_only=True)
class EncoderFacts:
    """Facts of the encoders, found by loading them."""

    vae: PartConfig
    scale: LatentScale
    """The VAE's own."""
    states_scale: bool
    """Whether the VAE's config states it."""
    has_variance: bool
    """Whether the VAE's latents have a variance."""
    latent_channels: int
    downsampling: int
    num_bytes: int
    """Size of all weights in memory."""
    vae_dtype: str
    """Number format that it computes in."""
    text_encoder: PartConfig | None = None
    text_encoder_dtype: str = ""
    """Number format that it computes in; empty if there is none."""
    caption_template: str = PLACE
    """The whole text around a caption."""
    caption_width: int = 0
    null_caption: "torch.Tensor | None" = None
    """T5("") (L, F) bf16."""


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """The encoders of features and their batch size. Picklable: workers load them by it."""

    vae: VAEConfig
    text_encoder: TextEncoderConfig | None
    """None where captions are not encoded."""
    batch_px: int
    """Pixels of the images that the VAE encodes together."""

    def in_dtype(self, dtype: Dtype) -> "Encoders":
        """The same encoders with `auto` settled: in this number format."""
        vae, text_encoder = self.vae, self.text_encoder
        if text_encoder is not None and text_encoder.dtype == AUTO:
            text_encoder = replace(text_encoder, dtype=dtype)
        return replace(self, vae=replace(vae, dtype=dtype) if vae.dtype == AUTO else vae, text_encoder=text_encoder)

    def stored_bytes(self) -> int:
        """Size of the weights' files. Raises UserError if an encoder is unavailable."""
        parts = [find_part(self.vae.name, "vae", revision=self.vae.revision)]
        if self.text_encoder is not None:
            parts.append(find_part(self.text_encoder.name, "text_encoder", revision=self.text_encoder.revision))
        return sum(stored_bytes(part.folder) for part in parts)

    def load_vae(self) -> VAE:
        """The VAE on this process's device."""
        return load_vae(self.vae, device=own_device())

    def load_text_encoder(self) -> TextEncoder:
        """T5 on this process's device."""
        assert self.text_encoder is not None
        return load_text_encoder(self.text_encoder, device=own_device())

    def describe(self) -> EncoderFacts:
        """Loads both and describes them. Raises UserError if one is unavailable."""
        vae = self.load_vae()
        facts = EncoderFacts(
            vae=_part_config(self.vae.name, vae.part, vae.fingerprint()),
            scale=vae.own_scale,
            states_scale=vae.part is None or states_scale(vae.part.folder),
            has_variance=vae.has_variance,
            latent_channels=vae.latent_channels,
            downsampling=vae.downsampling,
            num_bytes=_num_bytes(vae.model),
            vae_dtype=resolve_dtype(self.vae.dtype, own_device()),
        )
        if self.text_encoder is None:
            return facts
        encoder = self.load_text_encoder()
        return replace(
            facts,
            text_encoder=_part_config(self.text_encoder.name, encoder.part, encoder.fingerprint()),
            num_bytes=facts.num_bytes + _num_bytes(encoder.model),
            text_encoder_dtype=encoder.config.dtype,
            caption_template=encoder.config.template,
            caption_width=encoder.width,
            null_caption=_null_caption(encoder),
        )


@dataclass(frozen=True, kw_only=True)
class PrecomputeJob:
    """Settings of the work on a unit; see foundry.units.workers.UnitJob for the calls."""

    stores: Mapping[int, str]
    """Resolution → URL of its store."""
    infos: Mapping[int, FeaturesInfo]
    """Resolution → what its features.json says."""
    encoders: Encoders
    limits: DecodeLimits
    web: WebSettings
    extents: ExtentCache | None = None
    """Keeps what units share of containers; none: each image is read alone."""

    def prepare(self, unit: Unit, positions: Sequence[int]) -> tuple[Payload, Facts]:
        """Reads and decodes each of the samples at these positions once, and crops it for each resolution."""
        started = time.perf_counter()
        assert isinstance(unit, FeatureUnit)
        unit_rows = self._rows(unit)
        rows = [unit_rows[position] for position in positions]
        labels = {name: label for label, name in enumerate(self.infos[unit.resolutions[0]].class_names)}
        own = partial(self._read, sizes={one: unit.buckets[one] for one in unit.resolutions}, labels=labels)
        read = read_ahead(rows, own, cache=self.extents, max_bytes=self.limits.max_image_bytes, turn=unit.number, web=self.web)
        samples = [sample for sample, _ in read.images]
        pixels = {resolution: [images[resolution] for _, images in read.images] for resolution in unit.resolutions}
        payload = Payload(
            pixels={resolution: np.stack(images) for resolution, images in pixels.items() if images},
            texts=[text for one in samples for _, text in one.captions],
            control={
                resolution: np.stack([edge_map(image) for image in images])
                for resolution, images in pixels.items()
                if images and self.infos[resolution].control
            },
        )
        return payload, Facts(samples=samples, rejected=read.rejected, seconds=time.perf_counter() - started)

    def warm_up(self) -> None:
        """Nothing is loaded for reading and writing."""

    def load_engine(self) -> Engine:
        """The encoders, on this replica's device."""
        return Engine(self.encoders.load_vae(), self.encoders.load_text_encoder() if self.encoders.text_encoder else None)

    def check(self, engine: Engine) -> None:
        """Encodes one grey image and one caption. Raises UserError if an encoder answers NaN or infinity."""
        side = 8 * engine.vae.downsampling
        grey = np.full((1, side, side, 3), 128, np.uint8)
        output = self.process(engine, Payload(pixels={side: grey}, texts=["an owl"]), one_by_one=True)
        sample = SampleFacts(key="", height=side, width=side, class_label=None, captions=(("", "an owl"),))
        if failures := _failures([sample], output, self.infos):
            raise UserError(
                f"a grey image and the caption 'an owl': {failures[0].message}: the weights are damaged, or they overflow in "
                "their number format; give other encoders, or float32 as their number format"
            )

    def process(self, engine: Engine, payload: Payload, *, one_by_one: bool) -> Output:
        """Pixels to distributions, at most `batch_px` pixels at once; captions to features, in batches of like lengths."""
        import torch

        started = time.perf_counter()
        encode = partial(self._encode, engine, one_by_one=one_by_one)
        latents = {resolution: encode(pixels) for resolution, pixels in payload.pixels.items()}
        control = {
            resolution: encode(np.repeat(grey[..., None], 3, axis=3)).mean for resolution, grey in payload.control.items()
        }
        encoded = time.perf_counter()
        captions = None
        if engine.text_encoder is not None and payload.texts:
            captions = engine.text_encoder.encode(payload.texts, one_by_one=one_by_one).to("cpu", torch.bfloat16)
        seconds = {"vae": encoded - started, "t5": time.perf_counter() - encoded}
        return Output(latents=latents, captions=captions, seconds=seconds, control=control)

    def finish(self, unit: Unit, *, facts: Facts, output: Output, excluded: dict[int, Failure]) -> Commit | None:
        """Writes and commits the unit in each store; None if another attempt had committed it already.

        The captions are written into the first store; the commits of the others name them there.
        """
        assert isinstance(unit, FeatureUnit)
        started = time.perf_counter()
        failures = _failures(facts.samples, output, self.infos)
        failed = {facts.samples[index].key: failure for index, failure in failures.items()}
        rejected = all_rejected(facts.rejected, partial(self._rows, unit), failed=failed, excluded=excluded)
        if failures:
            facts, output = _without(facts, output, failures)
        first: Commit | None = None
        for resolution in unit.resolutions:
            commit = commit_unit(
                Folder(self.stores[resolution]),
                run_id=self.infos[resolution].fingerprint,
                unit=unit,
                tables=self._tables(resolution, facts, output, with_captions=first is None) | {REJECTED: rejected},
                num_tokens=0 if output.captions is None else len(output.captions.tokens),
                seconds={"prepare": facts.seconds, **output.seconds, "finish": time.perf_counter() - started},
                arrow=(LATENTS, CAPTIONS),
                shared={} if first is None else self._shared_captions(unit, first),
            )
            if commit is None:  # a twin is ahead: it commits the other resolutions too, or the next start does
                return None
            first = first or commit
        return first

    def _rows(self, unit: Unit) -> list[dict[str, Any]]:
        return read_unit(Folder(self.stores[min(self.stores)]), unit)  # the plan's files are in the first store

    def _encode(self, engine: Engine, pixels: Any, *, one_by_one: bool) -> LatentDistribution:
        import torch

        def encode(batch: Any) -> LatentDistribution:
            # Copied first: what comes from Ray's object store cannot be written to, which torch warns of.
            return engine.vae.encode(to_signed(torch.from_numpy(batch.copy()).to(engine.vae.model.device)))

        size, cost = 1 if one_by_one else self.encoders.batch_px, pixels.shape[1] * pixels.shape[2]
        found = engine.vae_batches.run(pixels, encode, size=size, cost=cost)
        mean = torch.cat([one.mean for one in found]).to("cpu")
        variances = [one.log_variance for one in found if one.log_variance is not None]
        return LatentDistribution(mean, torch.cat(variances).to("cpu") if variances else None)

    def _tables(self, resolution: int, facts: Facts, output: Output, *, with_captions: bool) -> "dict[str, pa.Table]":
        info, tables = self.infos[resolution], {}
        if facts.samples:
            control = output.control.get(resolution)
            tables[LATENTS] = latents_table(facts.samples, output.latents[resolution], info.latent_dtype, control=control)
        if with_captions and output.captions is not None:
            names = [[name for name, _ in one.captions] for one in facts.samples]
            tables[CAPTIONS] = captions_table(names, output.captions, as_int8=info.caption_storage == "int8")
        return tables

    def _shared_captions(self, unit: FeatureUnit, first: Commit) -> dict[str, CommittedFile]:
        """The captions' file as another resolution's commit names it."""
        if CAPTIONS not in first.files:
            return {}
        there = Folder(self.stores[unit.resolutions[0]]).root.rsplit("/", 1)[-1]
        return {CAPTIONS: replace(first.files[CAPTIONS], path=f"../{there}/{first.files[CAPTIONS].path}")}

    def _read(
        self, reader: ImageReader, row: Mapping[str, Any], *, sizes: Mapping[int, Size], labels: Mapping[str, int]
    ) -> tuple[SampleFacts, dict[int, Pixels]]:
        """One sample, and its pixels for each resolution. Raises ImageError if it cannot be used."""
        label = labels.get(row["class_label"]) if labels else None
        if labels and label is None:
            raise ImageError("no_class_label", f"class_label is {row['class_label']!r}")
        if not labels and not row["captions"]:
            raise ImageError("no_caption", "no prompt has a caption, and there is no alt text")
        side = max(min(size) for size in sizes.values())  # no larger than the buckets need
        if row["width"] and row["height"]:
            side = decoding_side_px(row["height"], row["width"], list(sizes.values()))
        image = read_image(reader, row, limits=self.limits, target_side_px=side).image
        captions = () if labels else tuple((one["name"], one["text"]) for one in row["captions"])
        facts = SampleFacts(key=row["key"], height=image.height, width=image.width, class_label=label, captions=captions)
        return facts, {resolution: fit(image.pixels, size) for resolution, size in sizes.items()}


def _failures(samples: Sequence[SampleFacts], output: Output, infos: Mapping[int, FeaturesInfo]) -> dict[int, Failure]:
    """Samples, by index, with features that are not finite or that the store's number format cannot hold."""
    import torch

    failures: dict[int, Failure] = {}
    for resolution, latents in output.latents.items():
        half = resolution not in infos or infos[resolution].latent_dtype == "float16"
        parts = [latents.mean] if latents.log_variance is None else [latents.mean, latents.log_variance]
        parts += [output.control[resolution]] if resolution in output.control else []
        for index, both in enumerate(torch.stack(parts, dim=1)):  # (2, C, h, w), or 1 without a variance, and 1 for a control
            if not bool(both.isfinite().all()):
                failures[index] = Failure(
                    reason="not_finite", message=f"the VAE's latents at {resolution} px are NaN or infinite"
                )
            elif half and not bool(both.half().isfinite().all()):
                largest = f"{float(both.abs().max()):.4g}"
                failures[index] = Failure(reason="out_of_range", message=f"a latent at {resolution} px is {largest} in size")
    if output.captions is not None and not bool(output.captions.tokens.isfinite().all()):
        parts = output.captions.tokens.split(output.captions.lengths.tolist())  # (L, F) each
        owners = [(index, name) for index, one in enumerate(samples) for name, _ in one.captions]
        for (index, name), tokens in zip(owners, parts, strict=True):
            if not bool(tokens.isfinite().all()):
                message = f"the text encoder's features of the caption {name!r} are NaN or infinite"
                failures.setdefault(index, Failure(reason="not_finite", message=message))
    return failures


def _without(facts: Facts, output: Output, left_out: Collection[int]) -> tuple[Facts, Output]:
    """The samples and features that are left."""
    kept = sorted(set(range(len(facts.samples))) - set(left_out))
    owners = (index for index, one in enumerate(facts.samples) for _ in one.captions)
    numbers = [number for number, index in enumerate(owners) if index not in left_out]
    latents = {
        resolution: LatentDistribution(one.mean[kept], None if one.log_variance is None else one.log_variance[kept])
        for resolution, one in output.latents.items()
    }
    captions = output.captions.select(numbers) if output.captions is not None and numbers else None
    control = {resolution: one[kept] for resolution, one in output.control.items()}
    own = replace(output, latents=latents, captions=captions, control=control)
    return replace(facts, samples=[facts.samples[index] for index in kept]), own


def _part_config(name: str, part: FrozenPart | None, fingerprint: str) -> PartConfig:
    return PartConfig(name=name, revision=(part.revision or None) if part else None, fingerprint=fingerprint)


def _null_caption(encoder: TextEncoder) -> "torch.Tensor":
    """T5("") (L, F) bf16. Raises UserError if it is not finite: the weights are damaged, or overflow."""
    import torch

    tokens = encoder.null_captions().tokens.to("cpu", torch.bfloat16).contiguous()
    if not bool(tokens.isfinite().all()):
        raise UserError(
            f"the text encoder {encoder.config.name} answers NaN or infinity to the empty caption: its weights are damaged, or "
            f"{encoder.config.dtype} overflows; give another one, or float32 as its number format",
            setting="text_encoder.dtype",
        )
    return tokens


def _num_bytes(model: "torch.nn.Module") -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
