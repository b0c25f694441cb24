"""What becomes of one unit of features: read and crop the images, encode them, encode the captions, write, commit.

The four steps run on different workers (trainer/on_ray.py) and in a plain loop alike. An image that cannot be used becomes a
rejected row and costs itself alone; whatever else goes wrong is the unit's `error`, and the unit is not committed.

Shapes: n samples of the unit, C latent channels, h x w the sides of the latents.
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dataset_builder.decoding import DecodeLimits
from dataset_builder.images import read_image, rejected_row
from dataset_builder.plan import read_unit
from dataset_builder.references import ImageReader
from dataset_builder.rejection import ImageError
from dataset_builder.storage import Folder
from dataset_builder.units import Commit, Failure, commit_unit
from foundry.hardware import resolve_dtype
from model.checkpoint import PartConfig
from model.frozen_parts import FrozenPart
from model.text_encoder import TextEncoder, TextEncoderConfig, load_text_encoder
from model.vae import VAE, LatentDistribution, LatentScale, VAEConfig, load_vae
from trainer.buckets import Size
from trainer.feature_info import FeaturesInfo
from trainer.feature_plan import PlannedUnit
from trainer.feature_tables import SampleFacts, captions_table, latents_table
from trainer.transforms import Pixels, decoding_side_px, fit, to_signed

if TYPE_CHECKING:
    import torch

    from model.dit import Captions

LATENTS, CAPTIONS, REJECTED = "latents", "captions", "rejected"


@dataclass(frozen=True, kw_only=True)
class UnitTask:
    """A unit of the plan and the resolutions at which it is still to be made."""

    unit: PlannedUnit
    resolutions: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitWork:
    """A unit on its way through the steps; each fills in its own part."""

    task: UnitTask
    facts: list[SampleFacts] = field(default_factory=list)
    """Of the samples that can be used."""
    rejected: list[dict[str, Any]] = field(default_factory=list)
    """Rows of schema.REJECTED."""
    pixels: Mapping[int, Pixels] = field(default_factory=dict)
    """By resolution, (n, H, W, 3); gone once they are encoded."""
    latents: Mapping[int, LatentDistribution] = field(default_factory=dict)
    """By resolution, each (n, C, h, w) bf16."""
    captions: "Captions | None" = None
    """Of all variants of all samples, in order."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """By step."""
    error: str = ""
    """What went wrong; then there is nothing to write."""


@dataclass(frozen=True, kw_only=True)
class EncoderFacts:
    """What the encoders are, as found by loading them."""

    vae: PartConfig
    scale: LatentScale
    latent_channels: int
    downsampling: int
    vae_dtype: str
    """Number format that it computes in."""
    text_encoder: PartConfig | None = None
    text_encoder_dtype: str = ""
    """Number format that it computes in; empty where there is none."""
    caption_width: int = 0
    null_caption: "torch.Tensor | None" = None
    """T5("") (L, F) bf16."""


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """Which encoders make features, and how much they are given at once. Picklable: workers load them by it."""

    vae: VAEConfig
    text_encoder: TextEncoderConfig | None
    """None where captions are not encoded."""
    batch_px: int
    """Pixels of the images that the VAE encodes together."""

    def load_vae(self) -> VAE:
        """The VAE on this process's device."""
        return load_vae(self.vae, device=_device())

    def load_text_encoder(self) -> TextEncoder:
        """T5 on this process's device."""
        assert self.text_encoder is not None
        return load_text_encoder(self.text_encoder, device=_device())

    def describe(self) -> EncoderFacts:
        """Loads both and says what they are. Raises UserError where one cannot be had."""
        import torch

        vae = self.load_vae()
        facts = EncoderFacts(
            vae=_part_config(self.vae.name, vae.part, vae.fingerprint()),
            scale=vae.scale,
            latent_channels=vae.latent_channels,
            downsampling=vae.downsampling,
            vae_dtype=resolve_dtype(self.vae.dtype, _device()),
        )
        if self.text_encoder is None:
            return facts
        encoder = self.load_text_encoder()
        return replace(
            facts,
            text_encoder=_part_config(self.text_encoder.name, encoder.part, encoder.fingerprint()),
            text_encoder_dtype=encoder.config.dtype,
            caption_width=encoder.width,
            null_caption=encoder.null_captions().tokens.to("cpu", torch.bfloat16).contiguous(),
        )


@dataclass(frozen=True, kw_only=True)
class PrecomputeJob:
    """The steps. Instances are pickled to the workers, so they hold settings only."""

    stores: Mapping[int, str]
    """Resolution → URL of its store."""
    infos: Mapping[int, FeaturesInfo]
    """Resolution → what its features.json says."""
    encoders: Encoders
    limits: DecodeLimits

    def decode(self, task: UnitTask) -> UnitWork:
        """On a CPU worker: the unit's rows, each read and decoded once and cropped for each resolution."""
        started = time.perf_counter()
        unit, info = task.unit, self.infos[task.resolutions[0]]
        rows = read_unit(Folder(self.stores[min(self.stores)]), unit)  # the plan's files are in the first store
        sizes = {resolution: unit.buckets[resolution] for resolution in task.resolutions}
        labels = {name: label for label, name in enumerate(info.class_names)}
        facts: list[SampleFacts] = []
        rejected: list[dict[str, Any]] = []
        pixels: dict[int, list[Pixels]] = {resolution: [] for resolution in sizes}
        with ImageReader() as reader:
            reader.expect(rows)
            for row in rows:
                try:
                    sample, image = self._read(reader, row, list(sizes.values()), labels)
                except ImageError as error:
                    rejected.append(rejected_row(row, Failure(reason=error.reason, message=error.message)))
                    continue
                facts.append(sample)
                for resolution, size in sizes.items():
                    pixels[resolution].append(fit(image, size))
        stacked = {resolution: np.stack(images) for resolution, images in pixels.items() if images}
        return UnitWork(
            task=task, facts=facts, rejected=rejected, pixels=stacked, seconds={"decode": time.perf_counter() - started}
        )

    def encode_images(self, vae: VAE, work: UnitWork) -> UnitWork:
        """On a VAE replica: pixels to distributions, in batches of at most `batch_px` pixels."""
        import torch

        started = time.perf_counter()
        latents = {}
        for resolution, pixels in work.pixels.items():
            size = max(1, self.encoders.batch_px // (pixels.shape[1] * pixels.shape[2]))
            # Copied first: what comes from Ray's object store cannot be written to, which torch warns of.
            batches = [torch.from_numpy(pixels[start : start + size].copy()) for start in range(0, len(pixels), size)]
            found = [vae.encode(to_signed(batch.to(vae.model.device))) for batch in batches]
            parts = ([one.mean for one in found], [one.log_variance for one in found])
            latents[resolution] = LatentDistribution(*(torch.cat(part).to("cpu", torch.bfloat16) for part in parts))
        seconds = {**work.seconds, "vae": time.perf_counter() - started}
        return replace(work, pixels={}, latents=latents, seconds=seconds)

    def encode_captions(self, encoder: TextEncoder, work: UnitWork) -> UnitWork:
        """On a T5 replica: all variants of all samples; the encoder makes batches of like lengths."""
        import torch

        started = time.perf_counter()
        texts = [text for one in work.facts for _, text in one.captions]
        captions = encoder.encode(texts).to("cpu", torch.bfloat16) if texts else None
        return replace(work, captions=captions, seconds={**work.seconds, "t5": time.perf_counter() - started})

    def finish(self, work: UnitWork) -> Commit | None:
        """On a CPU worker: writes and commits the unit in each store; None where another attempt had committed it already.

        The captions are written into the first store; the commits of the others name them there.
        """
        import pyarrow as pa

        from dataset_builder.schema import REJECTED as REJECTED_SCHEMA

        started = time.perf_counter()
        first: Commit | None = None
        for resolution in work.task.resolutions:
            info = self.infos[resolution]
            tables = {REJECTED: pa.Table.from_pylist(work.rejected, schema=REJECTED_SCHEMA)}
            if work.facts:
                tables[LATENTS] = latents_table(work.facts, work.latents[resolution])
            if first is None and work.captions is not None:
                names = [[name for name, _ in one.captions] for one in work.facts]
                tables[CAPTIONS] = captions_table(names, work.captions, as_int8=info.caption_storage == "int8")
            shared = {}
            if first is not None and CAPTIONS in first.files:
                there = Folder(self.stores[work.task.resolutions[0]]).root.rsplit("/", 1)[-1]
                shared[CAPTIONS] = replace(first.files[CAPTIONS], path=f"../{there}/{first.files[CAPTIONS].path}")
            commit = commit_unit(
                Folder(self.stores[resolution]),
                run_id=info.fingerprint,
                unit=work.task.unit,
                tables=tables,
                rejected=dict(Counter(row["reason"] for row in work.rejected)),
                num_tokens=0 if work.captions is None else len(work.captions.tokens),
                seconds={**work.seconds, "finish": time.perf_counter() - started},
                arrow=(LATENTS, CAPTIONS),
                shared=shared,
            )
            if commit is None:  # a twin is ahead: it commits the other resolutions too, or the next start does
                return None
            first = first or commit
        return first

    def _read(
        self, reader: ImageReader, row: Mapping[str, Any], sizes: list[Size], labels: Mapping[str, int]
    ) -> tuple[SampleFacts, Pixels]:
        """One sample, decoded no larger than its buckets need. Raises ImageError where it cannot be used."""
        label = labels.get(row["class_label"]) if labels else None
        if labels and label is None:
            raise ImageError("no_class_label", f"class_label is {row['class_label']!r}")
        if not labels and not row["captions"]:
            raise ImageError("no_caption", "no prompt has a caption, and there is no alt text")
        side = max(min(size) for size in sizes)
        if row["width"] and row["height"]:
            side = decoding_side_px(row["height"], row["width"], sizes)
        image = read_image(reader, row, limits=self.limits, target_side_px=side).image
        captions = () if labels else tuple((one["name"], one["text"]) for one in row["captions"])
        facts = SampleFacts(key=row["key"], height=image.height, width=image.width, class_label=label, captions=captions)
        return facts, image.pixels


def _part_config(name: str, part: FrozenPart | None, fingerprint: str) -> PartConfig:
    return PartConfig(name=name, revision=(part.revision or None) if part else None, fingerprint=fingerprint)


def _device() -> str:
    """This process's GPU, where Ray or the user gave it one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
