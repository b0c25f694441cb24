"""Duplicates: images with the same bytes as another one, or nearly the same picture.

Exact: equal content hashes. Near: perceptual hashes that differ in few bits, or CLIP embeddings with a high cosine. Grouping
is transitive: if A matches B and B matches C, all three form one group. Of a group, the image with the largest area is kept;
then the best CLIP score, then the first run and key in alphabetical order decide.
"""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dataset_builder.dataset.near_pairs import EmbeddingFile, cosine_pairs, hamming_pairs
from dataset_builder.dataset.recipe import DedupConfig
from dataset_builder.schema import GROUPS

Rows = npt.NDArray[np.int64]
CANDIDATES = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("area_px", pa.int64(), nullable=False),
        pa.field("clip_mean", pa.float32()),
        pa.field("perceptual_hash", pa.int64()),
    ]
)
"""Columns of the images to compare, one row per image; the last two are null where nothing was scored."""
# A perceptual hash has a one for each of 64 coefficients above their median: half of them, unless the picture is plain.
_LEAST_ONES = 24
_PAIRS_IN_MEMORY = 8_000_000


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """`groups` is schema.GROUPS, in the order of the candidates. The counts are of images."""

    groups: pa.Table
    num_images: int
    num_without_hash: int
    """Images that were not compared by perceptual hash: not scored, or plain."""
    num_without_embedding: int
    """Images that were not compared by embedding: not scored with a CLIP."""


def find_duplicates(
    candidates: Iterable[pa.RecordBatch], *, embeddings: Iterable[pa.RecordBatch] = (), config: DedupConfig, directory: str
) -> Duplicates:
    """Groups the images of batches of CANDIDATES; run and key together are unique.

    `embeddings` has batches of (run, key, embedding), in any order, for any of the images; it is read where min_cosine is set.
    Memory: about 450 bytes to an image; the embeddings go through a temporary file in `directory`, 2 bytes to a number.
    Raises ValueError for embeddings of different widths.
    """
    images = pa.Table.from_batches((batch.select(CANDIDATES.names).cast(CANDIDATES) for batch in candidates), CANDIDATES)
    content = pc.dictionary_encode(images["content_hash"]).combine_chunks().indices.to_numpy().astype(np.int64)
    rows, exact = _equal(content if config.is_on else np.arange(len(images), dtype=np.int64))
    near = DuplicateGroups(len(images))
    if config.is_near:
        near.join(rows, exact)
    hashed = with_embedding = len(images)
    if config.max_hamming is not None:
        hashed = _join_hashes(near, images["perceptual_hash"], radius=config.max_hamming)
    if config.min_cosine is not None:
        with_embedding = _join_embeddings(near, images, embeddings, least=config.min_cosine, directory=directory)
    return Duplicates(
        groups=_group_table(images, exact=exact, near=near.labels() if config.is_near else None),
        num_images=len(images),
        num_without_hash=len(images) - hashed,
        num_without_embedding=len(images) - with_embedding,
    )


class DuplicateGroups:
    """Joins rows 0 … num_rows - 1 pair by pair; 16 bytes to a row, and a bounded number of pairs at a time."""

    def __init__(self, num_rows: int) -> None:
        self._labels: Rows = np.arange(num_rows, dtype=np.int64)
        self._pending: list[tuple[Rows, Rows]] = []
        self._num_pending = 0

    def join(self, first: "Rows", second: "Rows") -> None:
        """Says that each row of `first` is the same thing as its partner in `second`."""
        if len(first):
            self._pending.append((first, second))
            self._num_pending += len(first)
        if self._num_pending > _PAIRS_IN_MEMORY:
            self._merge()

    def labels(self) -> "Rows":
        """The group of each row: the least row that is in it, (num_rows,)."""
        self._merge()
        return self._labels.copy()

    def _merge(self) -> None:
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        if not self._pending:
            return
        size = len(self._labels)
        first, second = (self._labels[np.concatenate(rows)] for rows in zip(*self._pending, strict=True))
        links = coo_matrix((np.ones(len(first), np.bool_), (first, second)), shape=(size, size))
        _, component = connected_components(links, directed=False)  # (num_rows,) over the old labels
        least = np.full(component.max() + 1, size, dtype=np.int64)
        np.minimum.at(least, component, np.arange(size, dtype=np.int64))
        self._labels = least[component[self._labels]]
        self._pending, self._num_pending = [], 0


def _equal(values: Rows) -> tuple[Rows, Rows]:
    """Each position, and the first position that holds the same value."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return np.arange(len(values), dtype=np.int64), first[inverse].astype(np.int64)


def _join_hashes(near: DuplicateGroups, hashes: pa.ChunkedArray, *, radius: int) -> int:
    """Joins images whose hashes differ in at most `radius` bits; returns how many could be compared."""
    codes = pc.fill_null(hashes, 0).to_numpy().astype(np.int64)
    rows = np.flatnonzero(np.bitwise_count(codes.view(np.uint64)) >= _LEAST_ONES)
    own, first = _equal(codes[rows])
    near.join(rows[own], rows[first])
    distinct = np.unique(first)
    for one, other in hamming_pairs(codes[rows][distinct], radius=radius):
        near.join(rows[distinct[one]], rows[distinct[other]])
    return len(rows)


def _join_embeddings(
    near: DuplicateGroups, images: pa.Table, embeddings: Iterable[pa.RecordBatch], *, least: float, directory: str
) -> int:
    """Joins images whose embeddings have at least that cosine; returns how many have an embedding."""
    numbers = _row_numbers(images.select(["run", "key"]))
    order = np.argsort(numbers, kind="stable")
    found = []
    with TemporaryDirectory(dir=directory) as folder, closing(EmbeddingFile(Path(folder) / "embeddings")) as file:
        for batch in embeddings:
            wanted = _row_numbers(pa.Table.from_batches([batch.select(["run", "key"])]))
            positions = np.searchsorted(numbers[order], wanted).clip(max=max(len(order) - 1, 0))
            is_known = numbers[order[positions]] == wanted if len(order) else np.zeros(len(wanted), bool)
            lists = batch.filter(pa.array(is_known))["embedding"]
            if len(lists):
                file.append(lists.flatten().to_numpy().reshape(len(lists), -1).astype(np.float16))
                found.append(order[positions[is_known]])
        rows = np.concatenate([np.zeros(0, np.int64), *found])
        for one, other in cosine_pairs(file, least=least):
            near.join(rows[one], rows[other])
    return len(np.unique(rows))


def _row_numbers(names: pa.Table) -> npt.NDArray[np.uint64]:
    """64 bits for each (run, key), in place of strings to look up; 10^7 of them clash with a probability below 10^-5."""
    pairs = zip(names["run"].to_pylist(), names["key"].to_pylist(), strict=True)
    digests = b"".join(blake2b(f"{run}\0{key}".encode(), digest_size=8).digest() for run, key in pairs)
    return np.frombuffer(digests, np.uint64)


def _group_table(images: pa.Table, *, exact: Rows, near: Rows | None) -> pa.Table:
    first_of_copies = _kept(images, exact)
    columns = {
        "run": images["run"],
        "key": images["key"],
        "exact_group": _numbered(exact),
        "near_group": _numbered(near) if near is not None else pa.nulls(len(images), pa.int64()),
        "is_copy": pa.array(~first_of_copies),
        "is_kept": pa.array(first_of_copies if near is None else _kept(images, near)),
    }
    return pa.table(columns, schema=GROUPS)


def _numbered(labels: Rows) -> pa.Array:
    """Groups of two and more as 0, 1, … in the order of their first image; null for those alone."""
    firsts, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    is_group = counts > 1
    numbers = np.cumsum(is_group) - 1
    assert (np.diff(firsts) > 0).all()  # a label is its group's first row, so the numbers follow the order of the images
    return pa.array(numbers[inverse], pa.int64(), mask=~is_group[inverse])


def _kept(images: pa.Table, labels: Rows) -> npt.NDArray[np.bool_]:
    """One image of each group, by the rule that the module states."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    kept: npt.NDArray[np.bool_] = counts[inverse] == 1
    rows = np.flatnonzero(~kept)
    of_group = images.select(["area_px", "clip_mean", "run", "key"]).take(pa.array(rows))
    of_group = of_group.append_column("group", pa.array(labels[rows])).append_column("row", pa.array(rows))
    of_group = of_group.set_column(1, "clip_mean", pc.fill_null(of_group["clip_mean"], float("-inf")))
    order = [("group", "ascending"), ("area_px", "descending"), ("clip_mean", "descending")]
    ranked = of_group.sort_by([*order, ("run", "ascending"), ("key", "ascending")])
    _, best = np.unique(ranked["group"].to_numpy(), return_index=True)
    kept[ranked["row"].to_numpy()[best]] = True
    return kept
