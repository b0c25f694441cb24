"""Reads single rows of a Parquet file in a streaming way: consecutive rows decode each row group once, in small batches."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from foundry.images.parquet import ParquetLayout, layout_of, name_classes, open_parquet

_BATCH_ROWS = 16


class ParquetRows:
    """A cursor over the image column and the scalar columns of one file.

    A row further on in the same row group is reached by reading on, a row in another group by starting there, so that the
    memory held is that of one batch and not of a row group, which may be gigabytes.
    """

    def __init__(self, uri: str) -> None:
        """Opens the file. Raises OSError or pa.ArrowException."""
        self._file = open_parquet(uri)
        self.layout: ParquetLayout = layout_of(self._file.schema_arrow)
        self._group_starts = [0]
        for group in range(self._file.metadata.num_row_groups):
            self._group_starts.append(self._group_starts[-1] + self._file.metadata.row_group(group).num_rows)
        self._group = -1
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.RecordBatch | None = None
        self._batch_start = 0

    @property
    def num_rows(self) -> int:
        """Rows of the file."""
        return self._group_starts[-1]

    def close(self) -> None:
        """Closes the file and drops the batch."""
        self._batches = iter(())
        self._batch = None
        self._file.close(force=True)

    def image(self, row: int) -> bytes | None:
        """The bytes of an image; None if they are null. Raises EOFError for a row past the end."""
        value = self._image_part(row, "bytes")
        return None if value is None or not value.is_valid else bytes(value.as_buffer())

    def image_path(self, row: int) -> str | None:
        """The path that a struct {bytes, path} holds; the `datasets` library reads the image there where bytes are null."""
        value = self._image_part(row, "path")
        return None if value is None else value.as_py()

    def _image_part(self, row: int, part: str) -> Any:
        """A field of the image column, or the column itself if it is no struct; None where there is no such field."""
        if self.layout.image is None:
            raise ValueError("there is no column of images any more")
        batch = self._seek(row)
        column = batch.column(batch.schema.get_field_index(self.layout.image))
        if not pa.types.is_struct(column.type):
            return column[row - self._batch_start] if part == "bytes" else None
        return column.field(part)[row - self._batch_start] if column.type.get_field_index(part) >= 0 else None

    def columns(self, row: int) -> dict[str, Any]:
        """The scalar columns of a row."""
        batch = self._seek(row)
        names = [name for name in batch.schema.names if name in self.layout.types]
        values = {name: batch.column(name)[row - self._batch_start].as_py() for name in names}
        return name_classes(values, self.layout.class_names)

    def _seek(self, row: int) -> pa.RecordBatch:
        """The batch that holds a row."""
        if not 0 <= row < self.num_rows:
            raise EOFError(f"row {row} of {self.num_rows}")
        group = next(group for group, end in enumerate(self._group_starts[1:]) if row < end)
        if group != self._group or row < self._batch_start:
            self._start(group)
        while self._batch is None or row >= self._batch_start + self._batch.num_rows:
            self._batch_start += self._batch.num_rows if self._batch is not None else 0
            self._batch = self._next_batch()
        return self._batch

    def _next_batch(self) -> pa.RecordBatch:
        """After a failure the row group is begun again, so that each of its rows fails with the true cause."""
        try:
            return next(self._batches)
        except Exception:
            self._group = -1
            raise

    def _start(self, group: int) -> None:
        columns = [*self.layout.image_leaves, *self.layout.types]
        self._batches = self._file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False)
        self._group, self._batch, self._batch_start = group, None, self._group_starts[group]
