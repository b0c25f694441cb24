"""Brings foreign captions in, and takes data sets out: `python -m dataset_builder.convert --source S --target T IN OUT`.

In: `sam-llava` (a tar of sa_<id>.txt, with the SA-1B images that it is about as --images), `image-txt` (image files with .txt
beside them), `laion` (Parquet with images or links and their texts), `webdataset` (tars). They become a captioning run
(--target run) or, by way of one, a data set. Out: a data set becomes WebDataset shards.
"""

import hashlib
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from dataset_builder.concepts.t5_view import T5Config
from dataset_builder.concepts.tagger import TaggerConfig
from foundry.command_line import counted, run_command
from foundry.errors import UserError
from foundry.units.cluster import RaySettings, check_paths
from foundry.units.rejection import allowed_rejections

if TYPE_CHECKING:
    from dataset_builder.runs.importing import ImportJob
    from dataset_builder.runs.plan import Plan
    from foundry.images.sources import Source
    from foundry.storage.folder import Folder

SOURCES = {
    "sam-llava": "a tar or tar.gz of sa_<id>.txt, and --images",
    "image-txt": "a folder of images, each with a .txt of the same name",
    "laion": "Parquet with an image or a link and its text",
    "webdataset": "tars of images and .txt or .json",
    "dataset": "a data set that dataset_builder.build wrote",
}
"""What --source can be."""

_KINDS = {"image-txt": ("files",), "laion": ("parquet", "list"), "webdataset": ("tar",)}
_UNIT_IMAGES = 512
_RUN_BESIDE = ".run"
"""What the run is called by way of which a data set is made; it stays, so that another recipe can be tried."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Raises ValueError for pairs of source and target that do not exist."""

    input: str
    """What is converted; path or URL."""
    out: str
    """Folder or URL of the result. The same command again resumes it."""
    source: Literal["sam-llava", "image-txt", "laion", "webdataset", "dataset"]
    """What the input is."""
    target: Literal["run", "dataset", "webdataset"]
    """What is made of it."""
    images: tuple[str, ...] = ()
    """Only sam-llava: folders, tars or files with the images, as captioner.run takes them."""
    prompt: str = ""
    """In: what the captions are filed under; default: the source. Out: whose captions are written; default: the first."""
    licence: str = ""
    """Licence and terms of images and captions, passed on to data set and model cards."""
    max_rejected: float | None = None
    """Share of the images that may be unusable before the import stops; default: 1 %, but at least 100."""
    images_per_shard: int = 1000
    """Images in a WebDataset shard."""
    num_workers: int | None = None
    """Processes that write shards; by default, one to a core."""
    tagger: TaggerConfig = field(default_factory=TaggerConfig)
    """What counts as a noun."""
    t5: T5Config = field(default_factory=T5Config)
    """The text encoder that will read the captions."""
    ray: RaySettings = field(default_factory=RaySettings)
    """Where the work runs."""

    def __post_init__(self) -> None:
        problems = []
        if (self.source == "dataset") != (self.target == "webdataset"):
            problems.append("a data set becomes webdataset; every other source becomes run or dataset (from there, webdataset)")
        if (self.source == "sam-llava") != bool(self.images):
            problems.append("--images belongs to --source sam-llava, which has captions without images")
        if self.images_per_shard < 1 or (self.num_workers or 1) < 1 or not 0 <= (self.max_rejected or 0) <= 1:
            problems.append("images_per_shard and num_workers must be at least 1, max_rejected between 0 and 1")
        if problems:
            raise ValueError("; ".join(problems))


def main(config: ConvertConfig) -> int:
    """Converts; returns 0, or 1 where more images were unusable than the budget allows."""
    check_paths([config.input, config.out, *config.images])
    if config.target == "webdataset":
        return _export(config)
    run = config.out if config.target == "run" else config.out.rstrip("/") + _RUN_BESIDE
    code = import_run(config, run)
    if code or config.target == "run":
        return code
    from dataset_builder import build

    return build.main(build.BuildConfig(captions=(run,), out=config.out, name=config.out.rstrip("/").rsplit("/", 1)[-1]))


def import_run(config: ConvertConfig, url: str) -> int:
    """Makes or resumes the run at `url`; returns 0, or 1 where the budget of unusable images was exceeded."""
    from dataset_builder.sql.noun_blocks import merge_counts_of
    from foundry.storage.folder import Folder, store_errors
    from foundry.storage.locations import is_local_path
    from foundry.units.commits import committed_units, read_commits
    from foundry.units.run import run_job

    started = time.perf_counter()
    run = Folder(url)
    with store_errors(run):
        sources = _find_sources(config)
        job = import_job(config, url)
        plan = _plan(config, run, job, sources)
        if job.has_archive:
            from dataset_builder.runs.text_archive import store_texts

            print(f"{config.input}: {store_texts(config.input, run):,} texts")
        done = committed_units(run)
        units = [unit for unit in plan.units() if unit.number not in done]
        print(f"{url}: {plan.num_images:,} images in {counted(plan.num_units, 'unit')}, {len(units):,} to do")
        allowed = allowed_rejections(config.max_rejected, plan.num_images)
        rejected = sum(commit.num_rejected for commit in read_commits(run))
        visible = {path: "" for path in (url, *(source.root for source in sources)) if is_local_path(path)}
        ended = not units or run_job(
            job, units, settings=config.ray, visible=visible, budget=allowed - rejected, started=started
        )
        commits = read_commits(run)
        merge_counts_of(run)
    rejected = sum(commit.num_rejected for commit in commits)
    print(f"{plan.num_images:,} images = {sum(commit.completed for commit in commits):,} imported + {rejected:,} rejected")
    return 0 if ended and rejected <= allowed else 1


def import_job(config: ConvertConfig, url: str) -> "ImportJob":
    """The work on a unit. Raises UserError where the tagger or the tokenizer cannot be had."""
    from dataset_builder.runs.importing import ImportJob
    from foundry.images.decoding import DecodeLimits

    return ImportJob(
        run=url,
        run_id=hashlib.sha256(json.dumps(_settings(config), sort_keys=True).encode()).hexdigest()[:16],
        prompt=config.prompt or config.source,
        has_archive=config.source == "sam-llava",
        limits=DecodeLimits(),
        tagger=config.tagger,
        t5=config.t5,
    )


def _settings(config: ConvertConfig) -> dict[str, Any]:
    """What decides what the run holds, in the words of a captioning run."""
    from dataset_builder.concepts.t5_view import T5View
    from dataset_builder.concepts.tagger import NounTagger
    from foundry.images.decoding import DecodeLimits
    from foundry.storage.schema import SCHEMA_VERSION

    prompt = config.prompt or config.source
    return {
        "schema_version": SCHEMA_VERSION,
        "engine": "import",
        "model": {"name": f"imported from {config.source}", "revision": "", "image_side_px": 0},
        "prompts": {"name": config.source, "prompts": [{"name": prompt, "text": ""}]},
        "limits": asdict(DecodeLimits()),
        "tagger": NounTagger(config.tagger).describe(),
        "t5": T5View(config.t5).describe(),
        "unit_size": _UNIT_IMAGES,
    }


def _find_sources(config: ConvertConfig) -> "list[Source]":
    """Where the images are. Raises UserError where the input is something else than --source says."""
    from foundry.images.sources import find_sources

    sources = find_sources(config.images or [config.input])
    kinds = _KINDS.get(config.source)
    wrong = [source for source in sources if kinds and source.kind not in kinds]
    if wrong:
        raise UserError(f"{wrong[0].uri} is no {config.source} ({SOURCES[config.source]}): give another --source")
    return sources


def _plan(config: ConvertConfig, run: "Folder", job: "ImportJob", sources: "list[Source]") -> "Plan":
    """Creates or checks run.json and plans what is not planned yet. Raises UserError for a run of something else."""
    from dataset_builder.runs.plan import extend_plan, record_carried
    from foundry.storage.locations import normalise

    record = {
        "run_id": job.run_id,
        "settings": _settings(config),
        "images": [normalise(path) for path in config.images or (config.input,)],
        "licence": config.licence,
        "carried": {},
        "argv": sys.argv,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if not run.create("run.json", json.dumps(record, indent=1).encode()):
        before = json.loads(run.read("run.json"))
        if (before["run_id"], before["images"]) != (record["run_id"], record["images"]):
            raise UserError(f"{run.url} holds a run of other images or settings: give another OUT")
    plan = extend_plan(run, sources, unit_size=_UNIT_IMAGES)
    record_carried(run, plan)
    return plan


def _export(config: ConvertConfig) -> int:
    from dataset_builder.dataset.webdataset import export_shards
    from dataset_builder.sql.dataset_files import read_dataset
    from foundry.storage.folder import Folder, store_errors

    dataset = read_dataset(config.input)
    with store_errors(Folder(config.out)):
        return export_shards(
            dataset,
            config.out,
            prompt=config.prompt,
            images_per_shard=config.images_per_shard,
            num_workers=config.num_workers,
        )


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            ConvertConfig,
            main,
            prog="python -m dataset_builder.convert",
            example="python -m dataset_builder.convert --source image-txt --target dataset photos/ data/photos",
            positional=("input", "out"),
        )
    )
