"""Parquet files as sources: the column that holds image bytes or paths, an index made without reading the images, and single
rows read in a streaming way."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foundry.errors import UserError
from foundry.images.index import MAX_ROWS, IndexRow
from foundry.images.metadata import map_columns
from foundry.storage.file_kinds import stem_of
from foundry.storage.locations import is_url, open_binary, read_errors, relative_to

IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "bytes", "content", "img", "image_bytes", "data")
PATH_NAMES = (
    *("file_name", "path", "image_path", "img_path", "filepath", "file_path", "filename", "file", "image", "img"),
    *("uri", "url", "image_uri", "image_url", "src"),
)
KEY_NAMES = ("key", "__key__", "id", "image_id")
"""Names of columns in order of preference; case does not matter."""
_LOCAL_BUFFER = 1 << 20
_REMOTE_BUFFER = 8 << 20
_BATCH_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class ParquetLayout:
    """Roles of the columns of a Parquet file. image and path are None if there is no such column.

    image_leaves and key_leaf are what to ask Parquet for: `image.bytes` and `image.path` of a struct. class_names are those
    of ClassLabel features, which the `datasets` library writes as integers.
    """

    image: str | None = None
    image_leaves: tuple[str, ...] = ()
    path: str | None = None
    key_leaf: str | None = None
    types: dict[str, str] = field(default_factory=dict)
    class_names: dict[str, list[str]] = field(default_factory=dict)

    @property
    def metadata_types(self) -> dict[str, str]:
        """DuckDB types of the columns that go to metadata, which are the scalar ones without alt text and class label."""
        names = map_columns({name: "any" for name in self.types if name != self.path}).metadata
        return {name: self.types[name] for name in names}


def open_parquet(uri: str) -> pq.ParquetFile:
    """Opens for streaming: columns pass through a buffer, not whole row groups at once. Raises OSError, pa.ArrowInvalid."""
    buffer_size = _REMOTE_BUFFER if is_url(uri) else _LOCAL_BUFFER
    source = open_binary(uri) if is_url(uri) else uri
    return pq.ParquetFile(source, buffer_size=buffer_size, pre_buffer=False)


@dataclass(frozen=True, kw_only=True)
class Footer:
    """End of a Parquet file."""

    schema: pa.Schema
    num_rows: int


def read_footer(uri: str) -> Footer:
    """Raises UserError if the file is empty, damaged or may not be read."""
    with read_errors(uri, "write it as Parquet again or remove it"), open_parquet(uri) as file:
        return Footer(schema=file.schema_arrow, num_rows=file.metadata.num_rows)


def row_group_starts(uri: str) -> list[int]:
    """The first row of each row group, and the number of rows. Raises UserError as read_footer does."""
    with read_errors(uri, "write it as Parquet again or remove it"), open_parquet(uri) as file:
        return _group_starts(file)


def read_schema(uri: str) -> pa.Schema:
    """The schema from the footer. Raises UserError as read_footer does."""
    return read_footer(uri).schema


def layout_of(schema: pa.Schema) -> ParquetLayout:
    """Finds the image column by name, then a struct of bytes, then (if no column names paths) any binary column."""
    class_names = _class_names(schema)
    types = {column.name: _duckdb_type(column.type) for column in schema if _is_scalar(column.type)}
    types |= {name: "VARCHAR" for name in class_names if name in types}
    holders = [column for column in schema if _image_leaves(column)]
    image = _first_named(holders, IMAGE_NAMES) or next((column for column in holders if pa.types.is_struct(column.type)), None)
    path = _first_named([column for column in schema if _is_text(column.type)], PATH_NAMES)
    if image is None and path is None and holders:
        image = holders[0]
    if image is None:
        return ParquetLayout(path=path.name if path else None, types=types, class_names=class_names)
    return ParquetLayout(
        image=image.name,
        image_leaves=_image_leaves(image),
        key_leaf=_key_leaf(schema, image),
        types=types,
        class_names=class_names,
    )


def index_parquet(uri: str, root: str) -> Iterator[IndexRow]:
    """One row for each row of the file, from the footer and, where there is one, the column of keys.

    The stem is the key of the row (of a path, its stem), else the file's stem and the row: `train-0-17`.
    Raises UserError if the file has no rows, no images, or cannot be read.
    """
    with read_errors(uri, "write it as Parquet again or remove it"), open_parquet(uri) as file:
        layout = layout_of(file.schema_arrow)
        if layout.image is None:
            raise UserError(f"{uri} has no column of image bytes (columns: {', '.join(file.schema_arrow.names)}); give another")
        if file.metadata.num_rows == 0:
            raise UserError(f"{uri} has no rows, expected images; remove it or write it again")
        container, stem = relative_to(uri, root), stem_of(uri)
        for row, key in enumerate(_keys(file, layout)):
            yield IndexRow(key or f"{stem}-{row}", f"{container}#{row}", uri, layout.image, None, None, row)


def name_classes(row: dict[str, Any], class_names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Replaces the integers of ClassLabel columns by their names, in place."""
    for name, names in class_names.items():
        value = row.get(name)
        if isinstance(value, int) and 0 <= value < len(names):
            row[name] = names[value]
    return row


def values_of(column: pa.Array) -> list[Any]:
    """The values of a column as Python has them. Bytes of a text that are not UTF-8 become lone surrogates, as in file names:
    so one bad text is named where it is (metadata.map_columns), and costs its neighbours nothing."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]
    return values


class ParquetRows:
    """A cursor over the image column and the scalar columns of one file.

    A row further on in the same row group is reached by reading on, a row in another group by starting there, so that the
    memory held is that of one batch and not of a row group, which may be gigabytes.
    """

    def __init__(self, uri: str) -> None:
        """Opens the file. Raises OSError or pa.ArrowException."""
        self._file = open_parquet(uri)
        self.layout: ParquetLayout = layout_of(self._file.schema_arrow)
        self._group_starts = _group_starts(self._file)
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

    def group_images(self, first_row: int) -> Iterator[pa.Array]:
        """The images of the row group that begins at a row, in batches. Raises ValueError if none begins there."""
        if first_row not in self._group_starts[:-1] or not self.layout.image_leaves:
            raise ValueError(f"no row group with images begins at row {first_row}")
        columns = self.layout.image_leaves[:1]
        group = self._group_starts.index(first_row)
        for batch in self._file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
            column = batch.column(0)
            yield column.field("bytes") if pa.types.is_struct(column.type) else column

    def image_path(self, row: int) -> str | None:
        """The path that a struct {bytes, path} holds; the `datasets` library reads the image there where bytes are null."""
        value = self._image_part(row, "path")
        return None if value is None else value.as_py()

    def _image_part(self, row: int, part: str) -> Any:
        """A field of the image column, or the column itself if it is no struct; None if there is no such field."""
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
        values = {name: values_of(batch.column(name).slice(row - self._batch_start, 1))[0] for name in names}
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
        """Next batch; after a failure the row group is started again, so that each of its rows fails with the true cause."""
        try:
            return next(self._batches)
        except StopIteration:
            self._group = -1
            raise EOFError("its row group has fewer rows than the footer says") from None
        except Exception:
            self._group = -1
            raise

    def _start(self, group: int) -> None:
        columns = [*self.layout.image_leaves, *self.layout.types]
        self._batches = self._file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False)
        self._group, self._batch, self._batch_start = group, None, self._group_starts[group]


def _group_starts(file: pq.ParquetFile) -> list[int]:
    groups = range(file.metadata.num_row_groups)
    return list(accumulate((file.metadata.row_group(group).num_rows for group in groups), initial=0))


def _keys(file: pq.ParquetFile, layout: ParquetLayout) -> Iterator[str | None]:
    if layout.key_leaf is None:
        yield from (None for _ in range(file.metadata.num_rows))
        return
    is_path = layout.key_leaf == f"{layout.image}.path"
    for batch in file.iter_batches(batch_size=MAX_ROWS, columns=[layout.key_leaf], use_threads=False):
        column = batch.column(0)
        if is_path:
            column = column.field("path")
        for value in values_of(column):
            text = None if value is None or not _is_unicode(str(value)) else str(value)
            yield stem_of(text) if is_path and text else text


def _first_named(columns: list[pa.Field], names: tuple[str, ...]) -> pa.Field | None:
    by_name = {column.name.lower(): column for column in reversed(columns)}
    return next((by_name[name] for name in names if name in by_name), None)


def _image_leaves(column: pa.Field) -> tuple[str, ...]:
    """The Parquet paths of a binary column, or of the fields bytes and path of a struct; empty for anything else."""
    if _is_binary(column.type):
        return (str(column.name),)
    if not pa.types.is_struct(column.type):
        return ()
    parts = {part.name: part.type for part in column.type}
    if "bytes" not in parts or not _is_binary(parts["bytes"]):
        return ()
    return tuple(f"{column.name}.{part}" for part in ("bytes", "path") if part in parts)


def _key_leaf(schema: pa.Schema, image: pa.Field) -> str | None:
    keys = [column for column in schema if _is_text(column.type) or pa.types.is_integer(column.type)]
    if found := _first_named(keys, KEY_NAMES):
        return str(found.name)
    path_leaf = f"{image.name}.path"
    return path_leaf if path_leaf in _image_leaves(image) and _is_text(image.type.field("path").type) else None


def _is_binary(data_type: pa.DataType) -> bool:
    return any(is_type(data_type) for is_type in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view))


def _is_text(data_type: pa.DataType) -> bool:
    if pa.types.is_dictionary(data_type):
        data_type = data_type.value_type
    return any(is_type(data_type) for is_type in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _is_scalar(data_type: pa.DataType) -> bool:
    if pa.types.is_dictionary(data_type):
        data_type = data_type.value_type
    return not (pa.types.is_nested(data_type) or _is_binary(data_type) or pa.types.is_fixed_size_binary(data_type))


def _duckdb_type(data_type: pa.DataType) -> str:
    if pa.types.is_boolean(data_type):
        return "BOOLEAN"
    if pa.types.is_integer(data_type):
        return "VARCHAR" if pa.types.is_uint64(data_type) else "BIGINT"
    return "DOUBLE" if pa.types.is_floating(data_type) else "VARCHAR"


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of ClassLabel features, from the metadata of the `datasets` library."""
    try:
        features: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        labels = {name: feature["names"] for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, AttributeError, TypeError):
        return {}
    return {name: names for name, names in labels.items() if isinstance(names, list)}


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
