"""Command that imports third-party captions and exports data sets.

python -m dataset_builder.convert --source S --target T IN OUT

In: `sam-llava` (a tar of sa_<id>.txt, with the SA-1B images that it is about as --images), `image-txt` (image files, each with
a .txt file), `laion` (Parquet with images or links and their texts), `webdataset` (tars). They become a captioning run
(--target run) or, by way of one, a data set. Out: a data set becomes WebDataset shards.
"""

from dataclasses import dataclass, field
from typing import Literal

from dataset_builder.concepts.t5_view import T5Config
from dataset_builder.concepts.tagger import TaggerConfig
from foundry.command_line import run_command
from foundry.units.cluster import RaySettings, check_paths

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
    )
    return import_run(source, run, tagger=config.tagger, t5=config.t5, ray=config.ray, max_rejected=config.max_rejected)


def _export(config: ConvertConfig) -> int:
    from dataset_builder.dataset.webdataset import export_shards
    from dataset_builder.sql.dataset_files import read_dataset
    from foundry.storage.folder import Folder, usable

    dataset = read_dataset(config.input)
    with usable(Folder(config.out)):
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
