"""Index file of a run or a data set: one DuckDB table with a row per caption, for pages and filters that stay quick.

A run of a million captions has thousands of files, each of which every query would open. The index holds what a gallery shows
and filters by, in the order of the files; it lies in the cache folder and may be deleted at any time. Its name is a digest of
the committed files that it was made of, so that it is never stale: another state is another file, which takes over the rows of
files that are the same. It is written under a hidden name and renamed, hence whole or not there, and then only read.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from dataset_builder.sql.database import Connection, scratch_database
from dataset_builder.sql.dataset_files import DatasetFiles
from dataset_builder.sql.run_files import RunFiles
from dataset_builder.sql.views import literal, stored_urls
from foundry.storage.folder import Folder, new_file

FORMAT = 1
"""Number of the table's form; an index of another form is not read."""
SUFFIX = ".duckdb"
_BATCH = 64
"""Files that one statement reads."""
_MEMORY = "2GB"
_TABLE = """CREATE TABLE {name}.rows (
    n BIGINT NOT NULL, piece INTEGER NOT NULL, run VARCHAR NOT NULL, key VARCHAR NOT NULL, prompt VARCHAR NOT NULL,
    caption VARCHAR NOT NULL, folded VARCHAR NOT NULL, status VARCHAR NOT NULL, num_words INTEGER, num_nouns INTEGER,
    density INTEGER, num_t5_tokens INTEGER, mean_logprob FLOAT, clip_mean FLOAT, aesthetic FLOAT, uri VARCHAR, member VARCHAR,
    byte_offset BIGINT, byte_length BIGINT, row BIGINT, content_hash VARCHAR, width INTEGER, height INTEGER,
    alt_text VARCHAR)"""
_IMAGE = ("uri", "member", "byte_offset", "byte_length", "row", "content_hash", "width", "height", "alt_text")
_PIECE = "list_position($urls, c.filename) AS place"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Committed files that belong together: a unit of a run, or a file of samples."""

    number: int
    digest: str
    captions: str
    """Path of its captions, relative to the folder."""
    images: str | None = None
    scores: str | None = None


def pieces_of(stored: RunFiles | DatasetFiles) -> list[Piece]:
    """The pieces of a run or a data set that hold captions, in their order."""
    if isinstance(stored, DatasetFiles):
        built = f"{stored.record.get('identity')}/{stored.record.get('created_at')}"
        return [
            Piece(number=number, digest=f"{built}/{path}", captions=path) for number, path in enumerate(stored.paths("samples"))
        ]
    scores = {commit.unit: commit for commit in (stored.scores.commits if stored.scores else ())}
    return [
        Piece(
            number=commit.unit,
            digest="/".join(
                [commit.files["captions"].sha256, *([scores[commit.unit].attempt] if commit.unit in scores else [])]
            ),
            captions=commit.files["captions"].path,
            images=commit.files["images"].path if "images" in commit.files else None,
            scores=next(iter(stored.unit_paths("scores", [commit.unit])), None),
        )
        for commit in stored.commits
        if "captions" in commit.files
    ]


def state_digest(pieces: Sequence[Piece]) -> str:
    """A digest of the files that an index of these pieces is made of."""
    state = [FORMAT, [[piece.number, piece.digest] for piece in pieces]]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:24]


def write_index(
    path: Path, stored: RunFiles | DatasetFiles, pieces: Sequence[Piece], *, on_progress: Callable[[int, int], None]
) -> None:
    """Writes the index of these pieces, from an older one next to it where there is any, and removes that.

    `on_progress` is called with the pieces that are done and all. Raises UserError and duckdb's errors for files that cannot be
    read.
    """
    older = sorted(path.parent.glob(f"*{SUFFIX}"), key=lambda file: file.stat().st_mtime)
    with (
        new_file(path) as partial,
        TemporaryDirectory(prefix="t2i-studio-") as spilled,
        scratch_database(spilled) as connection,
    ):
        if older:
            shutil.copyfile(older[-1], partial)
        connection.execute(f"SET memory_limit = '{_MEMORY}'")
        connection.execute(f"SET threads = {max(1, (os.cpu_count() or 1) // 2)}")  # the rest is for the first pages
        connection.execute(f"ATTACH {literal(str(partial))} AS idx")
        kept = _keep(connection, pieces) if older else _create(connection, "idx")
        left = [piece for piece in pieces if piece.number not in kept]
        for start in range(0, len(left), _BATCH):
            on_progress(len(kept) + start, len(pieces))
            add_pieces(connection, "idx", stored, left[start : start + _BATCH])
        connection.execute("DETACH idx")
    for file in older:
        file.unlink(missing_ok=True)


@contextmanager
def memory_index(stored: RunFiles | DatasetFiles, pieces: Sequence[Piece]) -> Iterator[Connection]:
    """A connection with the index of a few pieces in memory, attached as `idx`."""
    with TemporaryDirectory(prefix="t2i-studio-") as spilled, scratch_database(spilled) as connection:
        connection.execute("ATTACH ':memory:' AS idx")
        _create(connection, "idx")
        add_pieces(connection, "idx", stored, pieces)
        yield connection


@contextmanager
def open_index(path: Path) -> Iterator[Connection]:
    """A connection with an index file attached as `idx`, read-only: other processes may read it too."""
    with TemporaryDirectory(prefix="t2i-studio-") as spilled, scratch_database(spilled) as connection:
        connection.execute(f"SET memory_limit = '{_MEMORY}'")
        connection.execute(f"ATTACH {literal(str(path))} AS idx (READ_ONLY)")
        yield connection


def add_pieces(connection: Connection, name: str, stored: RunFiles | DatasetFiles, pieces: Sequence[Piece]) -> None:
    """Appends the rows of some pieces to the index that is attached under a name."""
    _register(connection, stored.folder)
    urls = stored_urls(stored.folder, [piece.captions for piece in pieces])
    values = {"urls": urls, "numbers": [piece.number for piece in pieces]}
    made = _sample_rows() if isinstance(stored, DatasetFiles) else _caption_rows(stored.folder, pieces)
    first = f"(SELECT coalesce(max(n), 0) FROM {name}.rows)"
    connection.execute(
        f"INSERT INTO {name}.rows BY NAME SELECT {first} + c.n AS n, $numbers[c.place] AS piece, * EXCLUDE (n, place) "
        f"FROM ({made}) c",
        values,
    )
    connection.executemany(f"INSERT INTO {name}.pieces VALUES (?, ?)", [[piece.number, piece.digest] for piece in pieces])


def _caption_rows(folder: Folder, pieces: Sequence[Piece]) -> str:
    numbered = f"SELECT *, row_number() OVER () AS n, {_PIECE} FROM read_parquet($urls, filename = true) c"
    images = _files_sql(folder, [piece.images for piece in pieces], _IMAGE)
    scores = _files_sql(folder, [piece.scores for piece in pieces], ("clip_mean", "aesthetic"))
    return (
        f"SELECT c.n, c.place, '' AS run, c.key, c.prompt, c.caption, lower(c.caption) AS folded, c.status, c.num_words, "
        "c.num_nouns, c.num_distinct_nouns AS density, c.num_t5_tokens, c.mean_logprob, s.clip_mean, s.aesthetic, "
        f"{', '.join(f'i.{name}' for name in _IMAGE)} FROM ({numbered}) c LEFT JOIN {images} i USING (key) "
        f"LEFT JOIN {scores} s USING (key)"
    )


def _files_sql(folder: Folder, paths: Sequence[str | None], columns: Sequence[str]) -> str:
    """A relation with the key and these columns of the files; an empty one where there are none."""
    urls = ", ".join(map(literal, stored_urls(folder, [path for path in paths if path])))
    if not urls:
        return f"(SELECT NULL::VARCHAR AS key, {', '.join(f'NULL AS {name}' for name in columns)} WHERE false)"
    return f"(SELECT key, {', '.join(columns)} FROM read_parquet([{urls}], hive_partitioning = false))"


def _sample_rows() -> str:
    images = ", ".join(_IMAGE)
    columns = f"run, key, clip_mean, aesthetic, {images}, filename"
    unnested = f"SELECT {columns}, unnest(captions) AS u FROM read_parquet($urls, filename = true, hive_partitioning = false)"
    return (
        f"SELECT row_number() OVER () AS n, {_PIECE}, run, key, u.prompt, u.caption, lower(u.caption) AS folded, u.status, "
        "u.num_words, u.num_nouns, u.num_distinct_nouns AS density, u.num_t5_tokens, u.mean_logprob, clip_mean, aesthetic, "
        f"{images} FROM ({unnested}) c"
    )


def _create(connection: Connection, name: str) -> set[int]:
    connection.execute(_TABLE.format(name=name))
    connection.execute(f"CREATE TABLE {name}.pieces (piece INTEGER, digest VARCHAR)")
    return set()


def _keep(connection: Connection, pieces: Sequence[Piece]) -> set[int]:
    """Removes the rows of pieces that are gone or changed; returns the numbers of the others."""
    wanted = {piece.number: piece.digest for piece in pieces}
    found = connection.execute("SELECT piece, digest FROM idx.pieces").fetchall()
    kept = {number for number, digest in found if wanted.get(number) == digest}
    for table in ("rows", "pieces"):
        connection.execute(f"DELETE FROM idx.{table} WHERE NOT list_contains(?::INTEGER[], piece)", [sorted(kept)])
    return kept


def _register(connection: Connection, folder: Folder) -> None:
    if not folder.is_local:
        protocol = folder.filesystem.protocol
        if not connection.filesystem_is_registered(protocol if isinstance(protocol, str) else protocol[0]):
            connection.register_filesystem(folder.filesystem)
