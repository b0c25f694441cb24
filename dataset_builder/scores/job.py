"""Scoring of one unit: its images are read and measured, images and sentences embedded and compared, the scores committed.

The methods run on different workers (foundry/units/ray_driver.py). A unit is that of the captioning run, or a row group of the
index that scores/plan.py writes for a data set; its rows are images that were read once before.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dataset_builder.json_text import words_of_json
from dataset_builder.schema import CAPTION_SCORES, EMBEDDINGS, SCORES
from dataset_builder.scores.aesthetic import AestheticPredictor
from dataset_builder.scores.clip import (
    DEFAULT_CLIP,
    NO_CLIP,
    ClipEncoder,
    ClipSource,
    image_pixels,
    resolve_clip,
    sentence_tokens,
    split_sentences,
)
from dataset_builder.scores.image_quality import MEASURED_SIDE_PX, perceptual_hash, sharpness
from dataset_builder.scores.plan import Scored, read_run_rows
from dataset_builder.sql.score_files import record_name, score_folder
from foundry.errors import UserError
from foundry.hardware import AutoDtype
from foundry.images.decoding import DecodeLimits
from foundry.images.loading import all_rejected, read_images, rejected_row
from foundry.storage.folder import Folder
from foundry.storage.model_files import files_fingerprint
from foundry.units.commits import Commit, Unit, check_not_all, commit_unit, read_unit
from foundry.units.rejection import Failure

SCORING_VERSION = 1
"""Changes whenever the same settings give other scores."""

_NOT_FINITE = Failure(reason="not_finite", message="CLIP, or the aesthetic predictor, computed NaN or infinity")
_ADVICE = "fetch CLIP and the aesthetic predictor again, or name others"
_CHANGED = Failure(reason="changed", message="its bytes have changed since it was captioned")


@dataclass(frozen=True)
class Payload:
    """Input of the replica: pixels (N, 3, side, side) uint8 and token ids (T, context); empty without a CLIP."""

    pixels: npt.NDArray[np.uint8]
    tokens: npt.NDArray[np.int64]


@dataclass(frozen=True)
class ImageToScore:
    """An image that was read. `sentences` by prompt, in the order of their tokens in the payload."""

    key: str
    sharpness: float
    perceptual_hash: int
    sentences: dict[str, list[str]]


@dataclass(frozen=True)
class Facts:
    """Images that were read, in the order of the payload, and rows of index.REJECTED."""

    images: list[ImageToScore]
    rejected: list[dict[str, Any]]
    seconds: float


@dataclass(frozen=True)
class Output:
    """Embeddings (N, D) and (T, D) of length 1, and the aesthetic scores, (N,); None if there is no such model."""

    images: npt.NDArray[np.float32] | None
    texts: npt.NDArray[np.float32] | None
    aesthetic: npt.NDArray[np.float32] | None
    seconds: float


@dataclass(frozen=True)
class Models:
    """Models of a replica."""

    clip: ClipEncoder
    aesthetic: AestheticPredictor | None


@dataclass(frozen=True, kw_only=True)
class ScoreJob:
    """Settings of the work on a unit; see foundry.units.workers.UnitJob for the calls."""

    scored: str
    """The captioning run or data set."""
    out: str
    """The folder of this scoring."""
    score_id: str
    is_run: bool
    """Whether `scored` is a captioning run."""
    clip: ClipSource | None
    aesthetic: str | None
    batch_size: int
    limits: DecodeLimits
    dtype: AutoDtype = "auto"
    """Number format that CLIP computes in."""
    structured: tuple[str, ...] = ()
    """The prompts whose captions are JSON: of these the words are scored."""

    def prepare(self, unit: Unit, positions: Sequence[int]) -> tuple[Payload, Facts]:
        """Reads, measures and crops the images at these positions, and cuts their captions into sentences."""
        started = time.perf_counter()
        unit_rows = self._rows(unit)
        rows = {unit_rows[position]["key"]: unit_rows[position] for position in positions}
        side = max(MEASURED_SIDE_PX, self.clip.side_px if self.clip else 0)
        read = read_images(list(rows.values()), limits=self.limits, target_side_px=side)
        kept = [one for one in read.images if one.facts["content_hash"] == rows[one.facts["key"]]["content_hash"]]
        same = {one.facts["key"] for one in kept}
        changed = [one.facts for one in read.images if one.facts["key"] not in same]
        images = [self._measure(one.image.pixels, rows[one.facts["key"]]) for one in kept]
        payload = self._payload([one.image.pixels for one in kept], images)
        rejected = read.rejected + [rejected_row(row, _CHANGED) for row in changed]
        return payload, Facts(images=images, rejected=rejected, seconds=time.perf_counter() - started)

    def warm_up(self) -> None:
        """Loads open_clip's transform and tokenizer."""
        if self.clip is not None:
            image_pixels(np.zeros((8, 8, 3), np.uint8), self.clip)
            sentence_tokens(["an owl"], self.clip)

    def load_engine(self) -> Models | None:
        """The CLIP and the predictor on this replica's device; None if neither is asked for."""
        if self.clip is None:
            return None
        clip = ClipEncoder(self.clip, batch_size=self.batch_size, dtype=self.dtype)
        return Models(clip, AestheticPredictor(self.aesthetic).to(clip.device) if self.aesthetic else None)

    def check(self, engine: Models | None) -> None:
        """Embeds one grey image and one text, and rates the image."""
        if engine is not None and self.clip is not None:
            pixels = image_pixels(np.full((64, 64, 3), 128, np.uint8), self.clip)[None]
            output = self.process(engine, Payload(pixels, sentence_tokens(["an owl"], self.clip)), one_by_one=True)
            if _not_finite(output, [1]).any():
                raise UserError(f"{_NOT_FINITE.message} for a grey image: {_ADVICE}")

    def process(self, engine: Models | None, payload: Payload, *, one_by_one: bool) -> Output:
        """Embeds images and sentences."""
        started = time.perf_counter()
        if engine is None or not len(payload.pixels):
            return Output(None, None, None, time.perf_counter() - started)
        size = 1 if one_by_one else None
        images = engine.clip.embed_images(payload.pixels, batch_size=size)  # (N, D)
        texts = engine.clip.embed_texts(payload.tokens, batch_size=size).cpu().numpy() if len(payload.tokens) else None
        liked = engine.aesthetic(images).cpu().numpy() if engine.aesthetic else None
        return Output(images.cpu().numpy(), texts, liked, time.perf_counter() - started)

    def finish(self, unit: Unit, *, facts: Facts, output: Output, excluded: dict[int, Failure]) -> Commit | None:
        """Compares and commits."""
        started = time.perf_counter()
        folder = Folder(self.out)
        not_finite = _not_finite(output, [_num_sentences(image) for image in facts.images])
        check_not_all(folder, num_not_finite=int(not_finite.sum()), num_images=len(facts.images), advice=_ADVICE)
        failed = {image.key: _NOT_FINITE for image, is_bad in zip(facts.images, not_finite, strict=True) if is_bad}
        rejected = all_rejected(facts.rejected, partial(self._rows, unit), failed=failed, excluded=excluded)
        return commit_unit(
            folder,
            run_id=self.score_id,
            unit=unit,
            tables=score_tables(facts.images, output, not_finite) | {"rejected": rejected},
            seconds={"prepare": facts.seconds, "process": output.seconds, "finish": time.perf_counter() - started},
        )

    def _rows(self, unit: Unit) -> list[dict[str, Any]]:
        """The images of a unit with reference, content hash and captions."""
        return read_run_rows(Folder(self.scored), unit) if self.is_run else read_unit(Folder(self.out), unit)

    def _measure(self, pixels: npt.NDArray[np.uint8], row: Mapping[str, Any]) -> ImageToScore:
        """The scores that need no model, and the sentences; captions without a word are left out."""
        texts = {
            said["prompt"]: words_of_json(said["caption"]) if said["prompt"] in self.structured else said["caption"]
            for said in row["captions"]
        }
        cut = {prompt: split_sentences(text, self.clip) for prompt, text in texts.items()} if self.clip else {}
        sentences = {prompt: parts for prompt, parts in cut.items() if parts}
        return ImageToScore(row["key"], sharpness(pixels), perceptual_hash(pixels), sentences)

    def _payload(self, pixels: Sequence[npt.NDArray[np.uint8]], images: Sequence[ImageToScore]) -> Payload:
        if self.clip is None or not pixels:
            return Payload(np.zeros((0, 3, 0, 0), np.uint8), np.zeros((0, 0), np.int64))
        texts = [sentence for image in images for parts in image.sentences.values() for sentence in parts]
        tokens = sentence_tokens(texts, self.clip) if texts else np.zeros((0, 0), np.int64)
        return Payload(np.stack([image_pixels(one, self.clip) for one in pixels]), tokens)


def score_job(scored: Scored, *, clip: str, aesthetic: str | None, batch_size: int) -> ScoreJob:
    """The work on a unit, with all that can be found out before Ray starts, and its record. Raises UserError."""
    resolved = resolve_clip(clip) if clip != NO_CLIP else None
    settings = {
        "of": scored.identity,
        "scoring_version": SCORING_VERSION,
        "clip": {"fingerprint": resolved.fingerprint, "preprocess": resolved.preprocess} if resolved else None,
        "aesthetic": _aesthetic_fingerprint(aesthetic, resolved) if aesthetic and resolved else None,
        "limits": asdict(scored.limits),
    }
    score_id = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    record = {
        "score_id": score_id,
        "clip": clip,
        "settings": settings,
        "created_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    scored.folder.create(record_name(score_id), json.dumps(record, indent=1).encode())
    return ScoreJob(
        scored=scored.folder.url,
        out=score_folder(scored.folder, score_id).url,
        score_id=score_id,
        is_run=scored.is_run,
        clip=resolved,
        aesthetic=aesthetic,
        batch_size=batch_size,
        limits=scored.limits,
        structured=scored.structured,
    )


def _aesthetic_fingerprint(path: str, clip: ClipSource) -> str:
    """Fingerprint of the predictor; also checks that it can be loaded and fits the CLIP, here and not on the workers."""
    width = AestheticPredictor(path).width
    if width != clip.width:
        raise UserError(
            f"{path} reads embeddings of width {width}, {clip.name} gives {clip.width}: LAION's predictor needs {DEFAULT_CLIP}"
        )
    return files_fingerprint([Path(path)])


def score_tables(images: Sequence[ImageToScore], output: Output, not_finite: npt.NDArray[np.bool_]) -> dict[str, pa.Table]:
    """The tables `scores`, `caption_scores` and `embeddings` of a unit, without the images that are `not_finite`, (N,)."""
    scores, captions, position = [], [], 0
    for number, image in enumerate(images):
        if not_finite[number]:
            position += _num_sentences(image)
            continue
        own = []
        for prompt, sentences in image.sentences.items():
            assert output.texts is not None and output.images is not None
            cosines = output.texts[position : position + len(sentences)] @ output.images[number]
            position += len(sentences)
            own.append(_caption_row(image.key, prompt, sentences, cosines))
        captions += own
        scores.append(
            {
                "key": image.key,
                "clip_mean": float(np.mean([row["clip_mean"] for row in own])) if own else None,
                "clip_least": min(row["clip_least"] for row in own) if own else None,
                "aesthetic": None if output.aesthetic is None else float(output.aesthetic[number]),
                "sharpness": image.sharpness,
                "perceptual_hash": image.perceptual_hash,
            }
        )
    return {
        "scores": pa.Table.from_pylist(scores, schema=SCORES),
        "caption_scores": pa.Table.from_pylist(captions, schema=CAPTION_SCORES),
        "embeddings": _embeddings(
            [image for image, is_bad in zip(images, not_finite, strict=True) if not is_bad],
            None if output.images is None else output.images[~not_finite],
        ),
    }


def _num_sentences(image: ImageToScore) -> int:
    return sum(map(len, image.sentences.values()))


def _not_finite(output: Output, num_sentences: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Whether the models computed NaN or infinity for each image or one of its sentences, (N,)."""
    found = np.zeros(len(num_sentences), np.bool_)
    if output.images is not None:
        found |= ~np.isfinite(output.images).all(axis=1)
    if output.texts is not None:
        found[np.repeat(np.arange(len(found)), num_sentences)[~np.isfinite(output.texts).all(axis=1)]] = True
    if output.aesthetic is not None:
        found |= ~np.isfinite(output.aesthetic)
    return found


def _caption_row(key: str, prompt: str, sentences: list[str], cosines: npt.NDArray[np.float32]) -> dict[str, Any]:
    return {
        "key": key,
        "prompt": prompt,
        "clip_mean": float(cosines.mean()),
        "clip_least": float(cosines.min()),
        "sentences": sentences,
        "sentence_scores": cosines.tolist(),
    }


def _embeddings(images: Sequence[ImageToScore], embeddings: npt.NDArray[np.float32] | None) -> pa.Table:
    if embeddings is None:
        return EMBEDDINGS.empty_table()
    offsets = np.arange(len(embeddings) + 1, dtype=np.int32) * embeddings.shape[1]
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(embeddings.astype(np.float16).ravel()))
    return pa.Table.from_arrays([pa.array([image.key for image in images]), lists], schema=EMBEDDINGS)
