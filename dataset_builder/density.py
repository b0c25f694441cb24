"""Concept density, the paper's Table 1, of any number of captioning runs, data sets and Parquet files side by side.

python -m dataset_builder.density RUN                                      the captions, a row to a prompt
python -m dataset_builder.density RUN --column alt_text caption            what came with the images, what was written
python -m dataset_builder.density RUN other/captions.parquet --json
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from dataset_builder.concepts.t5_view import T5Config
from dataset_builder.concepts.tagger import META_NOUNS, META_NOUNS_VERSION, TaggerConfig
from foundry.command_line import run_command
from foundry.errors import UserError

if TYPE_CHECKING:
    from dataset_builder.concepts.corpus import CountedText, Texts
    from dataset_builder.concepts.density import ConceptDensity
    from dataset_builder.reports.density_table import DensityRow


@dataclass(frozen=True, kw_only=True)
class DensityConfig:
    """Raises ValueError for no sources, no columns or a number below 1."""

    sources: tuple[str, ...]
    """Captioning runs, data sets, Parquet files, and folders of Parquet files; local paths or fsspec URLs."""
    column: tuple[str, ...] = ("caption",)
    """Text columns, a row to each: of a run those of `captions` and `images`, carried ones too."""
    sample_size: int | None = None
    """Captions in the samples by which rows are compared; by default, those of the smallest row."""
    json: bool = False
    """Print one line of JSON in place of the table."""
    tagger: TaggerConfig = field(default_factory=TaggerConfig)
    """Finds the nouns of Parquet files; a run's other columns are tagged as its captions were."""
    t5: T5Config = field(default_factory=T5Config)
    """Cuts the texts of Parquet files; a run's other columns are cut as its captions were."""
    num_workers: int | None = None
    """Processes that tag; by default, one to a core."""

    def __post_init__(self) -> None:
        problems = []
        if not self.sources or not self.column:
            problems.append("give at least one source and one column")
        problems += [f"{name} must be at least 1" for name in ("sample_size", "num_workers") if (getattr(self, name) or 1) < 1]
        if problems:
            raise ValueError("; ".join(problems))


def main(config: DensityConfig) -> int:
    """Prints the table or the JSON and returns 0."""
    from dataset_builder.reports.density_table import density_table

    texts = list(counted_texts(config))
    sample_size = choose_sample_size(texts, wanted=config.sample_size)
    rows = [density_row(text, sample_size=sample_size) for text in texts]
    print(json.dumps(as_json(rows, sample_size=sample_size)) if config.json else density_table(rows, sample_size=sample_size))
    return 0


def counted_texts(config: DensityConfig) -> "Iterator[CountedText]":
    """The rows of the table without their figures: each source's columns in the order asked for, and their prompts."""
    from dataset_builder.concepts.corpus import tagged_texts
    from dataset_builder.sql.dataset_files import is_dataset
    from dataset_builder.sql.views import is_run

    for source in config.sources:
        if is_run(source) or is_dataset(source):
            yield from _run_texts(source, config)
            continue
        for column in config.column:
            texts = _parquet_texts(source, column)
            options = {"tagger": config.tagger, "t5": config.t5, "num_workers": config.num_workers}
            yield from tagged_texts(texts, source=source, column=column, **options)  # type: ignore[arg-type]


def density_row(text: "CountedText", *, sample_size: int) -> "DensityRow":
    """The figures of one body of text; a sample of more captions than it has is all of it."""
    import numpy as np

    from dataset_builder.concepts.density import density_of, rarefied
    from dataset_builder.reports.density_table import DensityRow

    nouns = text.counts["noun"].to_pylist()
    is_concept = np.array([noun not in META_NOUNS for noun in nouns], dtype=bool)
    written, read = (text.counts[name].to_numpy().astype(np.int64) for name in ("count", "count_t5"))
    counts = {
        "written": written,
        "written_without_meta": written[is_concept],
        "t5": read,
        "t5_without_meta": read[is_concept],
    }
    size = min(sample_size, text.num_captions)
    return DensityRow(
        text=text,
        whole={view: density_of(count, num_captions=text.num_captions) for view, count in counts.items()},
        sample={view: rarefied(count, num_captions=text.num_captions, sample_size=size) for view, count in counts.items()},
    )


def choose_sample_size(texts: "list[CountedText]", *, wanted: int | None) -> int:
    """The captions in a sample. Raises UserError where no row has captions, or one has fewer than are wanted."""
    sizes = [text.num_captions for text in texts if text.num_captions]
    if not sizes:
        raise UserError("there are no captions to count yet: caption first, or give another --column")
    if wanted is not None and wanted > min(sizes):
        raise UserError(
            f"a sample of {wanted} captions cannot be drawn from a row of {min(sizes)}: give a smaller --sample_size"
        )
    return wanted or min(sizes)


def as_json(rows: "list[DensityRow]", *, sample_size: int) -> dict[str, Any]:
    """All figures, and all that they depend on, as one JSON object."""
    from dataset_builder.concepts.density import VALID_ABOVE

    return {
        "sample_size": sample_size,
        "valid_above": VALID_ABOVE,
        "meta_nouns_version": META_NOUNS_VERSION,
        "rows": [
            {
                name: getattr(row.text, name)
                for name in ("source", "column", "prompt", "num_captions", "num_empty", "tagger", "t5")
            }
            | {"captions_cut": row.captions_cut, "nouns_cut": row.nouns_cut}
            | {"whole": {view: _figures(density) for view, density in row.whole.items()}}
            | {"sample": {view: _figures(density) for view, density in row.sample.items()}}
            for row in rows
        ],
    }


def _figures(density: "ConceptDensity") -> dict[str, float]:
    return asdict(density) | {"ratio": density.ratio, "nouns_per_caption": density.nouns_per_caption}


def _run_texts(source: str, config: DensityConfig) -> "Iterator[CountedText]":
    from dataset_builder.concepts.corpus import counted_captions, run_texts, tagged_texts
    from dataset_builder.sql.database import open_stored

    with open_stored(source) as run:
        tagger = TaggerConfig.as_described(run.settings.get("tagger"), default=config.tagger)
        t5 = T5Config.as_described(run.settings.get("t5"), default=config.t5)
        for column in config.column:
            if column == "caption":
                yield from counted_captions(run, source=source)
                continue
            texts = run_texts(run, column, source=source)
            yield from tagged_texts(texts, source=source, column=column, tagger=tagger, t5=t5, num_workers=config.num_workers)


def _parquet_texts(source: str, column: str) -> "Texts":
    """A text column of a Parquet file, or of all in a folder. Raises UserError for what is not there or not text."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    from foundry.storage.folder import Folder

    folder = Folder(source)
    paths = sorted(path for path in folder.filesystem.find(folder.root) if path == folder.root or path.endswith(".parquet"))
    if not paths:
        raise UserError(f"{source} is no captioning run, no Parquet file and no folder of Parquet files: check the path")
    try:
        data = ds.dataset(paths, filesystem=folder.filesystem, format="parquet")
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise UserError(f"{source} cannot be read as Parquet ({reason}): check the file") from None
    texts = [name for name, kind in zip(data.schema.names, data.schema.types, strict=True) if _is_text(kind)]
    if column not in texts:
        raise UserError(f"{source} has no text column {column}: give --column one of {', '.join(texts) or '(it has none)'}")
    for batch in data.to_batches(columns=[column], batch_size=4096):
        values = batch[column].cast(pa.string()).to_pylist()
        yield [""] * len(values), values


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)) or (
        bool(pa.types.is_dictionary(kind)) and _is_text(kind.value_type)
    )


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            DensityConfig,
            main,
            prog="python -m dataset_builder.density",
            example="python -m dataset_builder.density RUN --column alt_text caption",
            positional=("sources",),
        )
    )
