"""Archive of captions without images: a tar (also gzipped) of <key>.txt, as SAM-LLaVA-Captions10M is published.

A gzipped tar can only be read from front to back, so it is read once, sorted by key, and kept as Parquet in the run that
imports it; a worker reads, for a unit, the row groups between its least and its greatest key.
"""

import bz2
import gzip
import json
import lzma
import secrets
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import PurePosixPath
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.dataset as ds

from foundry.errors import UserError, one_line
from foundry.images.tar import walk_members
from foundry.storage.folder import Folder
from foundry.storage.locations import describe, normalise, open_binary, read_errors
from foundry.storage.parquet_writer import ParquetParts
from foundry.storage.schema import versioned

TEXTS_RECORD = "texts.json"

_TEXTS = pa.schema([pa.field("key", pa.string(), nullable=False), pa.field("text", pa.string(), nullable=False)])
_BATCH = 20_000
_ROW_GROUP = 10_000


def store_texts(archive: str, run: Folder) -> int:
    """Reads the archive into the run, unless it was before; returns how many texts there are.

    Of two texts with one key the first counts. Raises UserError for an archive that is damaged or holds no .txt.
    """
    if run.exists(TEXTS_RECORD):
        record = json.loads(run.read(TEXTS_RECORD))
        if record["archive"] != normalise(archive):
            raise UserError(f"{run.url} imports the captions of {record['archive']}: give another OUT")
        return int(record["num_texts"])
    parts = ParquetParts(run, f"texts/{secrets.token_hex(4)}", versioned(_TEXTS), row_group_rows=_ROW_GROUP)
    for batch in _sorted(_texts(archive)):
        parts.add(batch.cast(versioned(_TEXTS)))
    if not parts.num_rows:
        raise UserError(f"{archive} holds no .txt file: give a tar of <key>.txt")
    parts.close()
    record = {"archive": normalise(archive), "num_texts": parts.num_rows, "parts": parts.records}
    run.create(TEXTS_RECORD, json.dumps(record, indent=1).encode())
    return parts.num_rows


def find_texts(run: Folder, keys: Sequence[str]) -> dict[str, str]:
    """The texts of these keys, as far as there are any."""
    if not keys:
        return {}
    paths = [run.path(part["path"]) for part in json.loads(run.read(TEXTS_RECORD))["parts"]]
    key = ds.field("key")
    wanted = (key >= min(keys)) & (key <= max(keys)) & key.isin(list(keys))
    found = ds.dataset(paths, filesystem=run.filesystem, format="parquet").to_table(filter=wanted)
    return dict(zip(found["key"].to_pylist(), found["text"].to_pylist(), strict=True))


def _texts(archive: str) -> Iterator[tuple[str, str]]:
    """Key and text of each .txt in the order of the archive; the key is the name without folder and suffix."""
    location = normalise(archive)
    with read_errors(archive, "check that it is a tar of .txt files"), open_binary(location, sequential=True) as opened:
        try:
            file, num_bytes = _decompressed(opened), describe(location).num_bytes
            for member in walk_members(file, archive, num_bytes=num_bytes if file is opened else None):
                path = PurePosixPath(member.path)
                if path.suffix != ".txt" or path.name.startswith("."):
                    continue
                file.seek(member.offset)
                content = file.read(member.length)
                if len(content) < member.length:
                    raise EOFError(f"{path} is cut off")
                yield path.stem, content.decode("utf-8", errors="replace").strip()
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise UserError(f"{archive} is damaged or not a tar ({one_line(error)}): fetch it again") from None


def _decompressed(file: BinaryIO) -> BinaryIO:
    """The content of a file that is compressed by gzip, bzip2 or xz, to be read from front to back; else the file itself."""
    begin = file.read(6)
    file.seek(0)
    if begin.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if begin.startswith(b"BZh"):
        return cast(BinaryIO, bz2.BZ2File(file))
    return cast(BinaryIO, lzma.LZMAFile(file)) if begin == b"\xfd7zXZ\0" else file


def _sorted(texts: Iterator[tuple[str, str]]) -> Iterator[pa.Table]:
    """All texts by key, through a database that spills to disk what does not fit in memory."""
    from dataset_builder.sql.database import scratch_database

    with tempfile.TemporaryDirectory() as directory, scratch_database(directory) as database:
        database.execute("CREATE TABLE texts (position BIGINT, key VARCHAR, text VARCHAR)")
        position = 0
        while rows := list(islice(texts, _BATCH)):
            keys, said = zip(*rows, strict=True)
            database.register("batch", pa.table({"position": range(position, position + len(rows)), "key": keys, "text": said}))
            database.execute("INSERT INTO texts SELECT * FROM batch")
            database.unregister("batch")
            position += len(rows)
        once = "SELECT key, arg_min(text, position) AS text FROM texts GROUP BY key ORDER BY key"
        for batch in database.sql(once).to_arrow_reader(_BATCH):
            yield pa.Table.from_batches([batch])
