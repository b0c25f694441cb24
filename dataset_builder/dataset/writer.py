"""Writes the files of a data set: samples by split, counts and index of their nouns, funnel and dropped images."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

from dataset_builder.sql.dataset_files import STORED
from foundry.storage.folder import Folder
from foundry.storage.parquet_writer import ParquetParts
from foundry.storage.schema import SAMPLES, SPLIT_NOUN_COUNTS, TALLIES, versioned

if TYPE_CHECKING:
    import pyarrow as pa

# A question after one noun reads a row group, so these are small.
_INDEX_ROW_GROUP_ROWS = 4096
_MERGE_EVERY = 16
_ONE_FILE = ("funnel", "noun_counts")
# What `datasets` reads, so that embedded images are images and not structs of bytes.
_IMAGE_FEATURE = b'{"info": {"features": {"image": {"_type": "Image"}}}}'


class DatasetWriter:
    """Takes samples in any number of tables, and writes one while the next is made. `records` are the `files` of dataset.json.

    with DatasetWriter(folder, splits=["train"], has_images=False, max_tokens=120) as writer:
        writer.add(samples)
    writer.records
    """

    def __init__(self, folder: Folder, *, splits: Iterable[str], has_images: bool, max_tokens: int) -> None:
        schema = versioned(SAMPLES)
        if has_images:
            schema = schema.with_metadata({**schema.metadata, b"huggingface": _IMAGE_FEATURE})
        self._folder = folder
        self._schema = schema
        self._samples = {split: ParquetParts(folder, f"samples/{split}", schema) for split in splits}
        self._index = ParquetParts(folder, "noun_index", versioned(STORED["noun_index"]), row_group_rows=_INDEX_ROW_GROUP_ROWS)
        self._counts: dict[str, list[pa.Table]] = {split: [] for split in self._samples}
        self._max_tokens = max_tokens
        self.tallies = TALLIES.empty_table()
        self.records: list[dict[str, Any]] = []
        self._pool = ThreadPoolExecutor(2)
        self._pending: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._wait()
        self._pool.shutdown()
        if kind is None:
            self._finish()

    @property
    def splits(self) -> dict[str, int]:
        """How many samples each split has."""
        return {split: parts.num_rows for split, parts in self._samples.items()}

    def add(self, samples: "pa.Table") -> None:
        """Appends rows of schema.SAMPLES; returns while they are written, once the rows before them are."""
        self._wait()
        self._pending = [self._pool.submit(add, samples) for add in (self._add_samples, self._add_nouns)]

    def write(self, kind: str, tables: "Iterable[pa.Table | pa.RecordBatch]") -> None:
        """Writes another kind of dataset_files.STORED, whole."""
        import pyarrow as pa

        parts = ParquetParts(self._folder, kind, versioned(STORED[kind]), is_one=kind in _ONE_FILE)
        for table in tables:
            whole = pa.Table.from_batches([table]) if isinstance(table, pa.RecordBatch) else table
            parts.add(whole.cast(versioned(STORED[kind])))
        self._close(parts, kind=kind)

    def _wait(self) -> None:
        for pending in self._pending:
            pending.result()

    def _add_samples(self, samples: "pa.Table") -> None:
        import pyarrow.compute as pc

        for split, parts in self._samples.items():
            parts.add(samples.filter(pc.equal(samples["split"], split)).replace_schema_metadata(self._schema.metadata))

    def _add_nouns(self, samples: "pa.Table") -> None:
        from dataset_builder.concepts.noun_counts import merge_counts
        from dataset_builder.dataset.sample_nouns import SampleNouns, sum_tallies

        nouns = SampleNouns(samples)
        self._index.add(nouns.index().replace_schema_metadata(versioned(STORED["noun_index"]).metadata))
        for split, table in nouns.counts().items():
            self._counts[split].append(table)
            if len(self._counts[split]) > _MERGE_EVERY:
                self._counts[split] = [merge_counts(self._counts[split])]
        self.tallies = sum_tallies([self.tallies, nouns.tallies(max_tokens=self._max_tokens)])

    def _finish(self) -> None:
        for split, parts in self._samples.items():
            self._close(parts, kind="samples", split=split)
        self._close(self._index, kind="noun_index")
        self.write("noun_counts", self._noun_counts())

    def _noun_counts(self) -> "Iterable[pa.Table]":
        import pyarrow as pa

        from dataset_builder.concepts.noun_counts import merge_counts

        for split, tables in self._counts.items():
            merged = merge_counts(tables)
            columns = [pa.array([split] * len(merged), pa.string()), *merged.columns]
            yield pa.Table.from_arrays(columns, schema=versioned(SPLIT_NOUN_COUNTS))

    def _close(self, parts: ParquetParts, *, kind: str, split: str | None = None) -> None:
        parts.close()
        self.records += [{"kind": kind, "split": split, **record} for record in parts.records]
