"""Parquet writer: a table of any length as files of a good size, with at most two row groups in memory.

zstd; a row group has about 100,000 rows, or fewer that take 256 MB in memory, so that readers can spread over the cores; a file
ends after 512 MB. Whoever writes them publishes them: a reader must not look for them before their records are in dataset.json.
"""

import hashlib
import io
from typing import IO, TYPE_CHECKING, Any

from foundry.storage.folder import Folder

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP_ROWS = 100_000
FILE_BYTES = 512 << 20
# More than text and nouns of 100,000 captions have in memory before they are packed; images, which do not shrink, have it soon.
_LARGEST_BATCH_BYTES = 256 << 20
# The distinct nouns of a row group fit, so that each is stored once; the default of 1 MB is too small for them.
_DICTIONARY_BYTES = 8 << 20


class ParquetParts:
    """The files `<name>/part-00000.parquet` … of one table; `records` says of each that is finished what dataset.json holds.

    `is_one` is for a small table: then its file is `<name>.parquet`.
    """

    def __init__(
        self, folder: Folder, name: str, schema: "pa.Schema", *, row_group_rows: int = ROW_GROUP_ROWS, is_one: bool = False
    ) -> None:
        self.records: list[dict[str, Any]] = []
        self.num_rows = 0
        self._folder = folder
        self._name = name
        self._schema = schema
        self._row_group_rows = row_group_rows
        self._is_one = is_one
        self._waiting: list[pa.Table] = []
        self._part: _Part | None = None

    def add(self, table: "pa.Table") -> None:
        """Appends rows of the schema."""
        self.num_rows += len(table)
        self._waiting.append(table)
        rows, num_bytes = (sum(sizes) for sizes in zip(*((len(part), part.nbytes) for part in self._waiting), strict=True))
        if rows >= self._row_group_rows or num_bytes >= _LARGEST_BATCH_BYTES:
            self._write()

    def close(self) -> None:
        """Writes what is left; a table without rows is one file without rows."""
        if self._waiting or not self.records:
            self._write()
        self._end_part()

    def _write(self) -> None:
        import pyarrow as pa

        table = pa.concat_tables([self._schema.empty_table(), *self._waiting])
        self._waiting = []
        if self._part is None:
            number = "" if self._is_one else f"/part-{len(self.records):05d}"
            self._part = _Part(self._folder, f"{self._name}{number}.parquet", self._schema)
        self._part.write(table, row_group_rows=self._row_group_rows)
        if self._part.sink.num_bytes >= FILE_BYTES and not self._is_one:
            self._end_part()

    def _end_part(self) -> None:
        if self._part is not None:
            self.records.append(self._part.close())
            self._part = None


class _Part:
    """One file that is being written."""

    def __init__(self, folder: Folder, path: str, schema: "pa.Schema") -> None:
        import pyarrow.parquet as pq

        folder.filesystem.makedirs(folder.path(path).rpartition("/")[0], exist_ok=True)
        self._path = path
        self._rows = 0
        self.sink = _Hashed(folder.filesystem.open(folder.path(path), "wb"))
        self._writer = pq.ParquetWriter(self.sink, schema, compression="zstd", dictionary_pagesize_limit=_DICTIONARY_BYTES)

    def write(self, table: "pa.Table", *, row_group_rows: int) -> None:
        self._rows += len(table)
        self._writer.write_table(table, row_group_size=row_group_rows)

    def close(self) -> dict[str, Any]:
        self._writer.close()
        self.sink.close()
        return {
            "path": self._path,
            "rows": self._rows,
            "num_bytes": self.sink.num_bytes,
            "sha256": self.sink.sha256.hexdigest(),
        }


class _Hashed(io.RawIOBase):
    """A file that is written once from front to back; knows its length and digest."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.sha256.update(view)
        self._file.write(view)
        self.num_bytes += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self.num_bytes

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
