"""What importing does with one unit: read the images, take the captions that came with them, count nouns, commit.

It makes the same run as the captioner does, so that everything that reads one also reads foreign captions. No model is loaded.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from dataset_builder.concepts.noun_counts import count_captions, count_nouns, load_t5_view, load_tagger
from dataset_builder.concepts.t5_view import T5Config
from dataset_builder.concepts.tagger import TaggerConfig
from dataset_builder.runs.plan import read_unit
from dataset_builder.runs.text_archive import find_texts
from foundry.images.decoding import DecodeLimits
from foundry.images.loading import read_images, rejected_row
from foundry.storage import schema
from foundry.storage.folder import Folder
from foundry.units.commits import Commit, Unit, commit_unit
from foundry.units.rejection import Failure

IMPORTED = "imported"
"""The finish reason of a caption that came from elsewhere."""

_DECODED_SIDE_PX = 64


@dataclass(frozen=True)
class Facts:
    """Rows of schema.IMAGES, their captions ("" where there is none), and rows of schema.REJECTED."""

    images: list[dict[str, Any]]
    captions: list[str]
    rejected: list[dict[str, Any]]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ImportJob:
    """Settings of the work on a unit; see foundry.units.workers.UnitJob for the calls."""

    run: str
    run_id: str
    prompt: str
    """What the captions are filed under, where our own have the name of a prompt."""
    has_archive: bool
    """Whether captions come from an archive, by key, and not from beside the images."""
    limits: DecodeLimits
    tagger: TaggerConfig
    t5: T5Config

    def prepare(self, unit: Unit, positions: Sequence[int]) -> tuple[None, Facts]:
        """Reads the images at these positions, small, since only their size and whether they are whole is asked."""
        started = time.perf_counter()
        run = Folder(self.run)
        rows = read_unit(run, unit)
        read = read_images([rows[position] for position in positions], limits=self.limits, target_side_px=_DECODED_SIDE_PX)
        images = [one.facts for one in read.images]
        if self.has_archive:
            stems = [_stem(image["key"]) for image in images]
            texts = find_texts(run, stems)
            captions = [texts.get(stem, "") for stem in stems]
        else:
            captions = [image["alt_text"] or "" for image in images]
        said = [" ".join(caption.split()) for caption in captions]
        return None, Facts(images, said, read.rejected, time.perf_counter() - started)

    def warm_up(self) -> None:
        """Loads the tagger and the tokenizer."""
        load_tagger(self.tagger).tag(["an owl"])
        load_t5_view(self.t5).measure(["an owl"])

    def load_engine(self) -> None:
        """Nothing: there is no model."""

    def check(self, engine: None) -> None:
        """Nothing."""

    def process(self, engine: None, payload: None, *, one_by_one: bool) -> None:
        """Nothing."""

    def finish(self, unit: Unit, *, facts: Facts, output: None, excluded: dict[int, Failure]) -> Commit | None:  # noqa: ARG002
        """Counts and commits."""
        started = time.perf_counter()
        run = Folder(self.run)
        rejected = list(facts.rejected)
        if excluded:
            rows = read_unit(run, unit)
            rejected += [rejected_row(rows[position], failure) for position, failure in sorted(excluded.items())]
        counted, nouns = count_captions(facts.captions, prompt=self.prompt, tagger=self.tagger, t5=self.t5)
        captions = [
            {"key": image["key"], **_imported(caption), **found}
            for image, caption, found in zip(facts.images, facts.captions, counted, strict=True)
        ]
        return commit_unit(
            run,
            run_id=self.run_id,
            unit=unit,
            tables={
                "images": pa.Table.from_pylist(facts.images, schema=schema.IMAGES),
                "captions": pa.Table.from_pylist(captions, schema=schema.CAPTIONS),
                "noun_counts": count_nouns(nouns),
                "rejected": pa.Table.from_pylist(rejected, schema=schema.REJECTED),
            },
            rejected=dict(Counter(row["reason"] for row in rejected)),
            seconds={"prepare": facts.seconds, "process": 0.0, "finish": time.perf_counter() - started},
        )


def _stem(key: str) -> str:
    """The name of the image's file without folder and suffix, which is the key where that is unique."""
    name = PurePosixPath(key)
    return name.name if "/" not in key else name.stem


def _imported(caption: str) -> dict[str, Any]:
    return {
        "caption": caption,
        "caption_raw": caption,
        "status": "ok" if caption else "empty",
        "flags": [],
        "finish_reason": IMPORTED,
        "num_tokens": 0,
    }
