"""Measures that are computed for a sample of the images: counts by one tagger and one tokenizer, and CLIP scores.

The sample is a fixed random choice: the paired images with the smallest content hashes. Scores of `dataset_builder.score`
are used for all images where the runs have them by one CLIP.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from captioner.comparison.candidates import Candidate
from captioner.comparison.measures import COUNTED
from dataset_builder.concepts.noun_counts import count_captions
from dataset_builder.concepts.t5_view import T5Config
from dataset_builder.concepts.tagger import TaggerConfig
from dataset_builder.schema import CAPTIONS
from dataset_builder.scores.clip import ClipEncoder, ClipSource, image_pixels, sentence_tokens, split_sentences
from dataset_builder.scores.image_quality import MEASURED_SIDE_PX
from dataset_builder.sql.database import Workbench
from dataset_builder.sql.views import literal
from foundry.errors import UserError
from foundry.images.decoding import DecodeLimits
from foundry.images.index import REFERENCE_NAMES
from foundry.images.loading import read_images
from foundry.wording import counted

_CHUNK = 64
_KEYS = [pa.field("image", pa.string(), nullable=False), pa.field("candidate", pa.int32(), nullable=False)]
_RECOUNTED = pa.schema([*_KEYS, *(CAPTIONS.field(name) for name in COUNTED)])
_CLIP = pa.schema([*_KEYS, pa.field("clip_mean", pa.float32()), pa.field("clip_least", pa.float32())])


@dataclass(frozen=True, kw_only=True)
class SampledImage:
    """An image that all candidates captioned: a reference to its bytes, and the captions in the order of the candidates."""

    image: str
    row: Mapping[str, Any]
    captions: list[str]
    limits: DecodeLimits
    """The limits that its run decoded it with."""


@dataclass(frozen=True, kw_only=True)
class ReadSample:
    """An image of the sample with its pixels, uint8 RGB (H, W, 3)."""

    sampled: SampledImage
    pixels: npt.NDArray[np.uint8]


def draw_sample(bench: Workbench, candidates: Sequence[Candidate], *, size: int) -> list[SampledImage]:
    """The first `size` images of `paired` by their hash."""
    return fetch_images(bench, candidates, f"SELECT * FROM paired ORDER BY image LIMIT {size}")


def fetch_images(bench: Workbench, candidates: Sequence[Candidate], chosen: str) -> list[SampledImage]:
    """The images of a query on `paired`, in the order of their hashes."""
    first = candidates[0].run
    captions = ", ".join(f"s_{one.index}.caption AS caption_{one.index}" for one in candidates)
    joins = " ".join(f"JOIN {one.captions} AS s_{one.index} ON s_{one.index}.key = p.key_{one.run}" for one in candidates)
    facts = ", ".join(f"i.{name}" for name in ("key", *REFERENCE_NAMES, "content_hash", "width", "height"))
    rows = bench.fetch(
        f"SELECT p.image, {facts}, {captions} FROM ({chosen}) p "
        f"JOIN run_{first}.stored.images i ON i.key = p.key_{first} {joins} ORDER BY p.image"
    ).to_pylist()
    limits = DecodeLimits(**candidates[0].files.settings.get("limits", {}))
    return [
        SampledImage(image=row["image"], row=row, captions=[row[f"caption_{one.index}"] for one in candidates], limits=limits)
        for row in rows
    ]


def keep_recounted(
    bench: Workbench, candidates: Sequence[Candidate], sample: Sequence[SampledImage], *, tagger: TaggerConfig, t5: T5Config
) -> None:
    """Makes the table `recounted`: the counts of the sample's captions, all by this tagger and tokenizer."""
    tables = []
    for one in candidates:
        texts = [image.captions[one.index] for image in sample]
        words = [one.words(text) for text in texts]
        columns, _ = count_captions(texts, words=words, prompt=one.prompt, tagger=tagger, t5=t5)
        rows = [{"image": image.image, "candidate": one.index, **row} for image, row in zip(sample, columns, strict=True)]
        tables.append(pa.Table.from_pylist(rows, schema=_RECOUNTED))
    bench.keep_table("recounted", pa.concat_tables(tables))


def keep_stored_clip(bench: Workbench, candidates: Sequence[Candidate]) -> None:
    """Makes the table `clip` of the scores that the runs hold."""
    parts = [
        f"SELECT p.image, {one.index} AS candidate, s.clip_mean, s.clip_least FROM paired p JOIN (SELECT * FROM "
        f"run_{one.run}.caption_scores WHERE prompt = {literal(one.prompt)}) s ON s.key = p.key_{one.run}"
        for one in candidates
    ]
    bench.keep("clip", " UNION ALL ".join(parts))


def keep_clip(
    bench: Workbench, candidates: Sequence[Candidate], sample: Sequence[SampledImage], source: ClipSource
) -> list[str]:
    """Makes the table `clip`: for each caption the mean and the least of its sentences' cosines; returns notes.

    As `dataset_builder.score` computes them. Raises UserError if CLIP computes NaN or infinity.
    """
    encoder = ClipEncoder(source, batch_size=_CHUNK)
    rows: list[dict[str, Any]] = []
    unread: list[str] = []
    for chunk in read_sample(sample, side_px=max(MEASURED_SIDE_PX, source.side_px), unread=unread):
        pixels = np.stack([image_pixels(one.pixels, source) for one in chunk])
        images = encoder.embed_images(pixels).cpu().numpy()  # (N, D)
        for one, embedding in zip(chunk, images, strict=True):
            said = zip(candidates, one.sampled.captions, strict=True)
            sentences = [split_sentences(candidate.words(caption), source) for candidate, caption in said]
            tokens = sentence_tokens([sentence for parts in sentences for sentence in parts], source)
            cosines = encoder.embed_texts(tokens).cpu().numpy() @ embedding  # (T,)
            if not np.isfinite(cosines).all():
                raise UserError(
                    f"{source.name} computes NaN or infinity for {one.sampled.row['key']}: fetch it again, or name another"
                )
            rows += _clip_rows(one.sampled.image, np.split(cosines, np.cumsum([len(parts) for parts in sentences])[:-1]))
    bench.keep_table("clip", pa.Table.from_pylist(rows, schema=_CLIP))
    return unread_notes(unread, "CLIP scores")


def read_sample(sample: Sequence[SampledImage], *, side_px: int | None, unread: list[str]) -> Iterator[list[ReadSample]]:
    """The pixels of the sample's images, a few at a time; what cannot be read, or has changed, is added to `unread`."""
    for start in range(0, len(sample), _CHUNK):
        chunk = {one.row["key"]: one for one in sample[start : start + _CHUNK]}
        read = read_images([one.row for one in chunk.values()], limits=sample[0].limits, target_side_px=side_px)
        unread += [f"{row['key']}: {row['message']}" for row in read.rejected]
        found = []
        for one in read.images:
            sampled = chunk[one.facts["key"]]
            if one.facts["content_hash"] == sampled.image:
                found.append(ReadSample(sampled=sampled, pixels=one.image.pixels))
            else:
                unread.append(f"{sampled.row['key']}: its bytes have changed since it was captioned")
        if found:
            yield found


def unread_notes(unread: Sequence[str], what: str) -> list[str]:
    """A line that counts images that could not be read, with the first; none if all could."""
    return (
        [f"{what} leave out {counted(len(unread), 'image')} that could not be read, the first: {unread[0]}."] if unread else []
    )


def _clip_rows(image: str, cosines: Sequence[npt.NDArray[np.float32]]) -> list[dict[str, Any]]:
    return [
        {"image": image, "candidate": number, "clip_mean": float(own.mean()), "clip_least": float(own.min())}
        for number, own in enumerate(cosines)
        if len(own)
    ]
