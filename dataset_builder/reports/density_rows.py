"""Rows of the density table: the noun counts of runs, data sets and Parquet files, and their figures at one sample size."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from dataset_builder.concepts.corpus import CountedText, Texts, counts_of_prompt, tagged_texts
from dataset_builder.concepts.density import density_of, rarefied
from dataset_builder.concepts.t5_view import T5Config
from dataset_builder.concepts.tagger import META_NOUNS, TaggerConfig
from dataset_builder.reports.density_settings import DensitySettings
from dataset_builder.reports.density_table import DensityRow
from dataset_builder.sql.database import Database
from dataset_builder.sql.dataset_files import is_dataset, open_stored
from dataset_builder.sql.views import quoted
from foundry.errors import UserError
from foundry.storage.folder import Folder
from foundry.storage.run_record import is_run


def density_rows(settings: DensitySettings) -> tuple[list[DensityRow], int]:
    """The rows of the table, with the number of captions in their samples. Raises UserError for what cannot be counted."""
    texts = list(
        counted_texts(
            settings.sources, columns=settings.column, tagger=settings.tagger, t5=settings.t5, num_workers=settings.num_workers
        )
    )
    sample_size = choose_sample_size(texts, wanted=settings.sample_size)
    return [density_row(text, sample_size=sample_size) for text in texts], sample_size


def counted_texts(
    sources: Sequence[str], *, columns: Sequence[str], tagger: TaggerConfig, t5: T5Config, num_workers: int | None = None
) -> Iterator[CountedText]:
    """The rows of the table without their figures: each source's columns in the order asked for, and their prompts.

    `tagger` and `t5` are for Parquet files; other columns of a run are tagged and cut as its captions were.
    """
    for source in sources:
        if is_run(source) or is_dataset(source):
            yield from _run_texts(source, columns, tagger=tagger, t5=t5, num_workers=num_workers)
            continue
        for column in columns:
            texts = _parquet_texts(source, column)
            yield from tagged_texts(texts, source=source, column=column, tagger=tagger, t5=t5, num_workers=num_workers)


def density_row(text: CountedText, *, sample_size: int) -> DensityRow:
    """The figures of one body of text; a sample of more captions than it has is all of it."""
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


def choose_sample_size(texts: list[CountedText], *, wanted: int | None) -> int:
    """The captions in a sample. Raises UserError if no row has captions, or one has fewer than are wanted."""
    sizes = [text.num_captions for text in texts if text.num_captions]
    if not sizes:
        raise UserError("there are no captions to count yet: caption first, or give another column", setting="column")
    if wanted is not None and wanted > min(sizes):
        raise UserError(
            f"a sample of {wanted} captions cannot be drawn from a row of {min(sizes)}: give a smaller sample",
            setting="sample_size",
        )
    return wanted or min(sizes)


def counted_captions(run: Database, *, source: str) -> list[CountedText]:
    """The captions of a run or a data set, a row to a prompt, as they were counted when written; nothing is tagged.

    Raises UserError if run.json does not name the tagger and the tokenizer.
    """
    settings = run.settings
    missing = [name for name in ("tagger", "t5") if name not in settings]
    if missing:
        raise UserError(f"{source}/run.json has no {' and no '.join(missing)}: caption again with this version")
    tallies = run.fetch("SELECT prompt, num_captions, num_empty, num_cut FROM stored.tallies ORDER BY prompt").to_pylist()
    every = run.fetch("SELECT * EXCLUDE is_meta FROM noun_counts ORDER BY prompt, noun")
    return [
        CountedText(
            source=source,
            column="caption",
            **tally,
            counts=counts_of_prompt(every, tally["prompt"]),
            tagger=settings["tagger"],
            t5=settings["t5"],
        )
        for tally in tallies
    ]


def run_texts(run: Database, column: str, *, source: str) -> Texts:
    """A text column of a run's `captions` (with its prompts) or `images` (those that were read).

    Raises UserError for a column that is not there or holds no text.
    """
    for view, prompt, where in (("captions", "prompt", "true"), ("images", "''", "width IS NOT NULL")):
        kinds = {row["column_name"]: row["column_type"] for row in run.fetch(f"DESCRIBE {view}").to_pylist()}
        if column in kinds:
            if kinds[column] != "VARCHAR":
                raise UserError(f"the column {column} of {source} holds {kinds[column]}, not text: give a text column")
            batches = run.batches(f"SELECT {prompt} AS prompt, {quoted(column)} AS text FROM {view} WHERE {where}")
            return ((batch["prompt"].to_pylist(), batch["text"].to_pylist()) for batch in batches)
    run.fetch(f"SELECT {quoted(column)} FROM images")  # raises, naming the nearest column
    raise AssertionError(column)


def _run_texts(
    source: str, columns: Sequence[str], *, tagger: TaggerConfig, t5: T5Config, num_workers: int | None
) -> Iterator[CountedText]:
    with open_stored(source) as run:
        tagger = TaggerConfig.as_described(run.settings.get("tagger"), default=tagger)
        t5 = T5Config.as_described(run.settings.get("t5"), default=t5)
        for column in columns:
            if column == "caption":
                yield from counted_captions(run, source=source)
                continue
            texts = run_texts(run, column, source=source)
            yield from tagged_texts(texts, source=source, column=column, tagger=tagger, t5=t5, num_workers=num_workers)


def _parquet_texts(source: str, column: str) -> Texts:
    """A text column of a Parquet file, or of all in a folder. Raises UserError for what is not there or not text."""
    folder = Folder(source)
    paths = sorted(path for path in folder.filesystem.find(folder.root) if path == folder.root or path.endswith(".parquet"))
    if not paths:
        raise UserError(f"{source} is not a captioning run, a Parquet file or a folder of Parquet files: check the path")
    try:
        data = ds.dataset(paths, filesystem=folder.filesystem, format="parquet")
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise UserError(f"{source} cannot be read as Parquet ({reason}): check the file") from None
    texts = [name for name, kind in zip(data.schema.names, data.schema.types, strict=True) if _is_text(kind)]
    if column not in texts:
        raise UserError(
            f"{source} has no text column {column}: give one of {', '.join(texts) or '(it has none)'}", setting="column"
        )
    for batch in data.to_batches(columns=[column], batch_size=4096):
        values = batch[column].cast(pa.string()).to_pylist()
        yield [""] * len(values), values


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)) or (
        bool(pa.types.is_dictionary(kind)) and _is_text(kind.value_type)
    )
