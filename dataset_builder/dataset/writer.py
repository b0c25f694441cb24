"""Writer of a data set's files: samples by split, counts and index of their nouns, funnel and dropped images."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

from dataset_builder.schema import SAMPLES, SPLIT_NOUN_COUNTS, TALLIES
from dataset_builder.sql.dataset_files import STORED
from foundry.storage.folder import Folder
from foundry.storage.parquet_writer import ParquetParts
from foundry.storage.schema import versioned

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


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
        """Number of samples of each split."""
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


class SampleNouns:
    """The captions of a table of schema.SAMPLES with their nouns as numbers, the numbers in the order of the nouns.

    `pairs` has a row to each caption and noun that it holds, sorted by noun and caption, (number of pairs, 2).
    """

    def __init__(self, samples: "pa.Table") -> None:
        import numpy as np
        import pyarrow.compute as pc

        lists = samples["captions"].combine_chunks()
        self._captions: pa.StructArray = lists.flatten()  # of all samples, in their order
        self._sample_of = pc.list_parent_indices(lists).to_numpy()  # (captions,)
        self._samples = samples
        nouns = samples["nouns"].combine_chunks().flatten()  # the lists of all captions
        self._words, codes = _sorted_codes(nouns.flatten())
        caption_of = pc.list_parent_indices(nouns).to_numpy().astype(np.int64)  # (nouns,)
        self._codes, self._caption_of = codes, caption_of
        self._starts = np.searchsorted(caption_of, np.arange(len(nouns)))  # the first noun of each caption, (captions,)
        num_captions = max(len(self._captions), 1)
        pairs = np.sort(codes * num_captions + caption_of)  # np.unique takes 60 times as long
        pairs = pairs[np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)]]
        self.pairs = np.stack([pairs // num_captions, pairs % num_captions], axis=1)

    def counts(self) -> "dict[str, pa.Table]":
        """schema.NOUN_COUNTS of each split, sorted by prompt and noun."""
        import numpy as np
        import pyarrow.compute as pc

        from dataset_builder.concepts.noun_counts import merge_counts

        splits = pc.dictionary_encode(self._samples["split"].combine_chunks())
        split_of = splits.indices.to_numpy()[self._sample_of]  # (captions,)
        prompts = pc.dictionary_encode(self._captions.field("prompt"))
        prompt_of = prompts.indices.to_numpy()
        position = np.arange(len(self._codes)) - self._starts[self._caption_of]
        is_read = position < self._captions.field("num_t5_nouns").to_numpy()[self._caption_of]
        tables = {}
        for split_number, split in enumerate(splits.dictionary.to_pylist()):
            tables[split] = merge_counts(
                [
                    self._counted(prompt, (split_of == split_number) & (prompt_of == prompt_number), is_read)
                    for prompt_number, prompt in enumerate(prompts.dictionary.to_pylist())
                ]
            )
        return tables

    def tallies(self, *, max_tokens: int) -> "pa.Table":
        """schema.TALLIES of these captions; `max_tokens` are those that the text encoder reads."""
        import pyarrow as pa
        import pyarrow.compute as pc

        from dataset_builder.schema import TALLIES

        has_words = pc.greater(self._captions.field("num_words"), 0)
        is_cut = pc.greater(self._captions.field("num_t5_tokens"), max_tokens)
        columns = [self._captions.field("prompt"), *(pc.cast(c, pa.int64()) for c in (has_words, pc.invert(has_words), is_cut))]
        return sum_tallies([pa.Table.from_arrays(columns, schema=TALLIES)])

    def index(self) -> "pa.Table":
        """schema.NOUN_INDEX of these samples, sorted by noun."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        from dataset_builder.schema import NOUN_INDEX

        prompts = pc.dictionary_encode(self._captions.field("prompt"))
        tables = [NOUN_INDEX.empty_table()]
        for number, prompt in enumerate(prompts.dictionary.to_pylist()):
            pairs = self.pairs[prompts.indices.to_numpy()[self.pairs[:, 1]] == number]
            codes, starts = np.unique(pairs[:, 0], return_index=True)
            keys = self._samples["key"].combine_chunks().take(pa.array(self._sample_of[pairs[:, 1]]))
            lists = pa.ListArray.from_arrays(np.append(starts, len(pairs)).astype(np.int32), keys)
            columns = [self._words.take(pa.array(codes)), pa.array([prompt] * len(codes), pa.string()), lists]
            tables.append(pa.Table.from_arrays(columns, schema=NOUN_INDEX))
        return pa.concat_tables(tables).sort_by([("noun", "ascending"), ("prompt", "ascending")])

    def _counted(self, prompt: str, is_counted: "NDArray[np.bool_]", is_read: "NDArray[np.bool_]") -> "pa.Table":
        """NOUN_COUNTS of the captions that are counted, (captions,); `is_read` tells the nouns that T5 reads, (nouns,)."""
        import numpy as np
        import pyarrow as pa

        from dataset_builder.schema import NOUN_COUNTS

        size = len(self._words)
        chosen = is_counted[self._caption_of]
        count = np.bincount(self._codes[chosen], minlength=size)
        count_t5 = np.bincount(self._codes[chosen & is_read], minlength=size)
        num_captions = np.bincount(self.pairs[is_counted[self.pairs[:, 1]], 0], minlength=size)
        found = np.flatnonzero(count)
        columns = [count[found], count_t5[found], num_captions[found]]
        arrays = [pa.array([prompt] * len(found), pa.string()), self._words.take(pa.array(found))]
        return pa.Table.from_arrays([*arrays, *(pa.array(column, pa.int64()) for column in columns)], schema=NOUN_COUNTS)


def sum_tallies(tables: "Sequence[pa.Table]") -> "pa.Table":
    """The sum of tables of schema.TALLIES, a row to a prompt, in order."""
    import pyarrow as pa

    from dataset_builder.schema import TALLIES

    names = TALLIES.names[1:]
    sums = pa.concat_tables([TALLIES.empty_table(), *tables]).group_by("prompt").aggregate([(name, "sum") for name in names])
    return sums.rename_columns(TALLIES.names).cast(TALLIES).sort_by("prompt")


def _sorted_codes(words: "pa.StringArray") -> "tuple[pa.StringArray, NDArray[np.int64]]":
    """The distinct words in order, and the index of each word among them, (words,)."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    encoded = pc.dictionary_encode(words)
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return encoded.dictionary.take(pa.array(order)), rank[encoded.indices.to_numpy()]
