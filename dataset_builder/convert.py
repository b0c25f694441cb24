"""Command that imports third-party captions and exports data sets.

python -m dataset_builder.convert --source S --target T IN OUT

In: `sam-llava` (a tar of sa_<id>.txt, with their SA-1B images as --images), `image-txt` (image files, each with
a .txt file), `laion` (Parquet with images or links and their texts), `webdataset` (tars). They become a captioning run
(--target run) or, from that, a data set. Out: a data set becomes WebDataset shards.
"""

from dataclasses import dataclass, field
from typing import Literal

from dataset_builder.concepts.t5_view import T5Config
from dataset_builder.concepts.tagger import TaggerConfig
from foundry.command_line import run_command
from foundry.units.cluster import RaySettings, check_paths
from foundry.units.rejection import max_rejected_problems

_RUN_BESIDE = ".run"
"""Suffix of the run that a data set is made from; the run stays, so that another recipe can be tried."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Raises ValueError for pairs of source and target that do not exist."""

    input: str
    """Path or URL of the input."""
    out: str
    """Folder or URL of the result. The same command resumes it."""
    source: Literal["sam-llava", "image-txt", "laion", "webdataset", "dataset"]
    """Kind of the input."""
    target: Literal["run", "dataset", "webdataset"]
    """Kind of the result."""
    images: tuple[str, ...] = ()
    """Folders, tars or files with the images, as captioner.run takes them; only for --source sam-llava."""
    prompt: str = ""
    """Prompt name of the imported captions (default: the source), or prompt whose captions are exported (default: the
    first)."""
    licence: str = ""
    """Licence and terms of images and captions, copied to data set and model cards."""
    max_rejected: float | None = None
    """Share of the images (0 to 1) that may be rejected before the import stops; default: 0.01, but at least 100 images."""
    images_per_shard: int = 1000
    """Number of images in a WebDataset shard."""
    reencode: bool = False
    """Write images as PNG into shards if they are not JPEG, PNG or WebP (AVIF, JPEG 2000, TIFF, …), or if Pillow refuses
    them."""
    ignore: tuple[str, ...] = ("*.mask.png",)
    """Name patterns of image files to skip, such as masks of other images; --ignore '[]' skips none."""
    num_workers: int | None = None
    """Number of processes that write shards; default: one per core."""
    tagger: TaggerConfig = field(default_factory=TaggerConfig)
    """Tagger settings: what counts as a noun."""
    t5: T5Config = field(default_factory=T5Config)
    """Text encoder for which captions are measured."""
    ray: RaySettings = field(default_factory=RaySettings)
    """Ray settings: where the work runs."""

    def __post_init__(self) -> None:
        problems = max_rejected_problems(self.max_rejected)
        if (self.source == "dataset") != (self.target == "webdataset"):
            problems.append("a data set becomes webdataset; every other source becomes run or dataset (from there, webdataset)")
        if (self.source == "sam-llava") != bool(self.images):
            problems.append("--images belongs to --source sam-llava, which has captions without images")
        if self.reencode and self.target != "webdataset":
            problems.append("--reencode belongs to --target webdataset, which copies images")
        if self.images_per_shard < 1 or (self.num_workers or 1) < 1:
            problems.append("images_per_shard and num_workers must be at least 1")
        if problems:
            raise ValueError("; ".join(problems))


def main(config: ConvertConfig) -> int:
    """Converts; returns 0, or 1 where more images were unusable than the budget allows."""
    check_paths([config.input, config.out, *config.images])
    if config.target == "webdataset":
        return _export(config)
    run = config.out if config.target == "run" else config.out.rstrip("/") + _RUN_BESIDE
    code = _import(config, run)
    if code or config.target == "run":
        return code
    from dataset_builder.dataset.building import build_and_report
    from dataset_builder.dataset.recipe import BuildConfig

    return build_and_report(BuildConfig(captions=(run,), out=config.out, name=config.out.rstrip("/").rsplit("/", 1)[-1]))


def _import(config: ConvertConfig, run: str) -> int:
    from dataset_builder.runs.importing import CaptionSource, import_run

    source = CaptionSource(
        path=config.input,
        kind=config.source,
        images=config.images,
        prompt=config.prompt or config.source,
        licence=config.licence,
        ignore=config.ignore,
    )
    return import_run(source, run, tagger=config.tagger, t5=config.t5, ray=config.ray, max_rejected=config.max_rejected)


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
            reencode=config.reencode,
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
