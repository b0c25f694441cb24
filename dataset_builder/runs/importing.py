"""Import of captions that exist: the images of a unit are read, their captions taken as they are, nouns counted, all committed.

The result is a run like those of the captioner, so that what reads one also reads third-party captions. No model is loaded.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from dataset_builder.concepts.noun_counts import count_captions, count_nouns, load_t5_view, load_tagger
from dataset_builder.concepts.t5_view import T5Config, T5View
from dataset_builder.concepts.tagger import NounTagger, TaggerConfig
from dataset_builder.runs.carried_types import record_types
from dataset_builder.runs.plan import Plan, extend_plan
from dataset_builder.runs.text_archive import find_texts, store_texts
from dataset_builder.schema import CAPTIONS
from dataset_builder.sql.noun_blocks import merge_counts_of
from dataset_builder.sql.run_files import RunFiles
from foundry.errors import UserError
from foundry.images.decoding import DecodeLimits
from foundry.images.index import IMAGES
from foundry.images.loading import all_rejected, read_images
from foundry.images.sources import Source, find_sources
from foundry.reporting.lines import say
from foundry.storage.file_kinds import MASKS, PassedOver
from foundry.storage.folder import Folder, store_errors
from foundry.storage.locations import is_local_path, normalise
from foundry.storage.run_record import RunRecord, as_stored, record_carried, run_id
from foundry.storage.schema import SCHEMA_VERSION
from foundry.units.cluster import RaySettings
from foundry.units.commits import Commit, Unit, commit_unit, committed_units, read_commits, read_unit
from foundry.units.rejection import Failure, allowed_rejections
from foundry.wording import counted

SOURCES = {
    "sam-llava": "a tar or tar.gz of sa_<id>.txt, and the images apart",
    "image-txt": "a folder of images, each with a .txt of the same name",
    "laion": "Parquet with an image or a link and its text",
    "webdataset": "tars of images and .txt or .json",
    "dataset": "a data set that dataset_builder.build wrote",
}
"""Kinds of source, and what each is."""
IMPORTED = "imported"
"""Finish reason of a caption that was imported."""

_KINDS = {"image-txt": ("files",), "laion": ("parquet", "list"), "webdataset": ("tar",)}
_UNIT_IMAGES = 512
_DECODED_SIDE_PX = 64


@dataclass(frozen=True, kw_only=True)
class CaptionSource:
    """Captions that exist, and the images that they are about."""

    path: str
    """Path or URL of the captions, and of the images where `images` names none."""
    kind: str
    """One of SOURCES."""
    images: tuple[str, ...]
    """Sources of the images, for captions in an archive."""
    prompt: str
    """Prompt name that the captions get."""
    licence: str
    """Licence and terms, recorded with the run."""
    ignore: tuple[str, ...] = MASKS
    """Patterns of the names of images to leave out."""

    @property
    def has_archive(self) -> bool:
        """Whether captions come from an archive, by key, and not with the images."""
        return self.kind == "sam-llava"


def import_run(
    source: CaptionSource, url: str, *, tagger: TaggerConfig, t5: T5Config, ray: RaySettings, max_rejected: float | None
) -> int:
    """Makes or resumes the run at `url`; returns 0, or 1 where the budget of unusable images was exceeded."""
    from foundry.units.run import run_job

    started = time.perf_counter()
    run = Folder(url)
    with store_errors(run):
        passed_over = PassedOver()
        images = _find_sources(source, passed_over)
        settings = _settings(source, tagger, t5)
        job = import_job(source, url, settings=settings, tagger=tagger, t5=t5)
        record, plan = _plan(source, run, settings, images)
        if source.has_archive:
            say(f"{source.path}: {store_texts(source.path, run):,} texts")
        done = committed_units(run)
        units = [unit for unit in plan.units() if unit.number not in done]
        say(f"{url}: {plan.num_images:,} images in {counted(plan.num_units, 'unit')}, {len(units):,} to do")
        if line := passed_over.line(in_tars=plan.num_passed_over):
            say(line)
        allowed = allowed_rejections(max_rejected, plan.num_images)
        rejected = sum(commit.num_rejected for commit in read_commits(run))
        visible = {path: "" for path in (url, *(one.root for one in images)) if is_local_path(path)}
        ended = not units or run_job(job, units, settings=ray, visible=visible, budget=allowed - rejected, started=started)
        commits = read_commits(run)
        files = RunFiles(run, record, tuple(commits))
        merge_counts_of(files)
        record_types(files, plan)
    rejected = sum(commit.num_rejected for commit in commits)
    say(f"{plan.num_images:,} images = {sum(commit.completed for commit in commits):,} imported + {rejected:,} rejected")
    return 0 if ended and rejected <= allowed else 1


def import_job(source: CaptionSource, url: str, *, settings: dict[str, Any], tagger: TaggerConfig, t5: T5Config) -> "ImportJob":
    """The work on a unit."""
    return ImportJob(
        run=url,
        run_id=run_id(settings),
        prompt=source.prompt,
        has_archive=source.has_archive,
        limits=DecodeLimits(),
        tagger=tagger,
        t5=t5,
    )


@dataclass(frozen=True)
class Facts:
    """Rows of index.IMAGES, their captions ("" if there is none), and rows of index.REJECTED."""

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
    """Prompt name that the captions get."""
    has_archive: bool
    """Whether captions come from an archive, by key, and not with the images."""
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
        columns, nouns = count_captions(facts.captions, prompt=self.prompt, tagger=self.tagger, t5=self.t5)
        captions = [
            {"key": image["key"], **_imported(caption), **found}
            for image, caption, found in zip(facts.images, facts.captions, columns, strict=True)
        ]
        return commit_unit(
            run,
            run_id=self.run_id,
            unit=unit,
            tables={
                "images": pa.Table.from_pylist(facts.images, schema=IMAGES),
                "captions": pa.Table.from_pylist(captions, schema=CAPTIONS),
                "noun_counts": count_nouns(nouns),
                "rejected": all_rejected(facts.rejected, partial(read_unit, run, unit), failed={}, excluded=excluded),
            },
            seconds={"prepare": facts.seconds, "process": 0.0, "finish": time.perf_counter() - started},
        )


def _find_sources(source: CaptionSource, passed_over: PassedOver) -> list[Source]:
    """The sources of the images. Raises UserError if the input is of another kind than it is said to be."""
    sources = find_sources(source.images or [source.path], passed_over=passed_over, ignore=source.ignore)
    kinds = _KINDS.get(source.kind)
    wrong = [one for one in sources if kinds and one.kind not in kinds]
    if wrong:
        raise UserError(f"{wrong[0].uri} is not {source.kind} ({SOURCES[source.kind]}): give another kind", setting="source")
    return sources


def _settings(source: CaptionSource, tagger: TaggerConfig, t5: T5Config) -> dict[str, Any]:
    """The settings that decide what the run holds, under the names that a captioning run uses.

    Raises UserError if the tagger or the tokenizer is unavailable.
    """
    settings = {
        "schema_version": SCHEMA_VERSION,
        "engine": "import",
        "model": {"name": f"imported from {source.kind}", "revision": "", "image_side_px": 0},
        "prompts": {"name": source.kind, "prompts": [{"name": source.prompt, "text": ""}]},
        "limits": asdict(DecodeLimits()),
        "tagger": NounTagger(tagger).describe(),
        "t5": T5View(t5).describe(),
        "unit_size": _UNIT_IMAGES,
    }
    return as_stored(settings)


def _plan(source: CaptionSource, run: Folder, settings: dict[str, Any], images: list[Source]) -> tuple[RunRecord, Plan]:
    """Creates or checks run.json and plans what is not planned yet. Raises UserError for a run of something else."""
    images_of = [normalise(path) for path in source.images or (source.path,)]
    record = RunRecord.new(settings=settings, images=images_of, licence=source.licence)
    if not record.create(run):
        before = RunRecord.read(run)
        if before is None or (before.run_id, before.images) != (record.run_id, record.images):
            raise UserError(f"{run.url} holds a run of other images or settings: give another OUT")
        record = before
    plan = extend_plan(run, images, unit_size=_UNIT_IMAGES)
    return record_carried(run, record, plan.carried), plan


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
