"""Near pairs: embeddings of a high cosine, and 64-bit codes that differ in few bits, found through an index.

The embeddings lie in a file. k-means on a sample cuts space into cells; each embedding is looked at in its two nearest cells,
where all pairs are compared exactly. Up to 2 * CELL_ROWS embeddings there is one cell, so that no pair is missed; beyond, a
pair whose cells all differ is missed, which is rare at the cosines that mean a duplicate.

Source: Abbas et al., "SemDeDup", arXiv 2303.09540 (clusters by k-means, pairs within a cluster).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    Pairs = Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]


CELL_ROWS = 4096
_SAMPLE_PER_CELL = 64
_NEAREST = 2
_BLOCK = 16_384
_SEED = 0
_PARTS = 3
_BITS_PER_PART = 21
_QUERIES = 4096


class EmbeddingFile:
    """Embeddings of length 1 in half precision, appended batch by batch to a file, then read at any rows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self.width = 0
        self.num_rows = 0

    def append(self, embeddings: npt.NDArray[np.float16]) -> None:
        """Adds rows, (rows, width). Raises ValueError for another width than before."""
        if self.num_rows and embeddings.shape[1] != self.width:
            raise ValueError(
                f"embeddings of width {embeddings.shape[1]} next to others of {self.width}: score all runs with one CLIP"
            )
        self.width = embeddings.shape[1]
        self.num_rows += len(embeddings)
        self._file.write(np.ascontiguousarray(embeddings).tobytes())

    def read(self, rows: npt.NDArray[np.int64] | slice) -> npt.NDArray[np.float32]:
        """The embeddings of these rows, (rows, width), normalised again after rounding."""
        self._file.flush()
        stored = np.memmap(self._path, np.float16, "r", shape=(self.num_rows, self.width))
        found: npt.NDArray[np.float32] = stored[rows].astype(np.float32)
        found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6)
        return found

    def close(self) -> None:
        """Closes the file; it stays."""
        self._file.close()


def cosine_pairs(embeddings: EmbeddingFile, *, least: float) -> "Pairs":
    """Yields (first, second): rows whose cosine is at least `least`, first < second; a pair may come twice.

    Memory: 24 bytes to a row, and two blocks of 16,384 embeddings.
    """
    if embeddings.num_rows < 2:
        return
    num_cells = embeddings.num_rows // CELL_ROWS if embeddings.num_rows > 2 * CELL_ROWS else 1
    cells = _assign(embeddings, num_cells)  # (N, 2)
    order = np.argsort(cells, axis=None, kind="stable")
    bounds = np.searchsorted(cells.ravel()[order], np.arange(num_cells + 1))
    for cell in range(num_cells):
        members = np.unique(order[bounds[cell] : bounds[cell + 1]] // cells.shape[1])
        yield from _pairs_within(embeddings, members, least=least)


def hamming_pairs(
    codes: npt.NDArray[np.int64], *, radius: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yields (first, second): positions of codes that differ in at most `radius` bits, first < second, each pair once.

    codes: (N,), all different. Memory: about 150 bytes to a code, and the pairs of 4,096 codes. Exact.
    """
    import faiss

    if len(codes) < 2:
        return
    packed = codes.view(np.uint8).reshape(-1, 8)  # (N, 8)
    index = faiss.IndexBinaryMultiHash(64, _PARTS, _BITS_PER_PART)
    index.nflip = radius // _PARTS
    index.add(packed)
    for start in range(0, len(codes), _QUERIES):
        limits, _, found = index.range_search(packed[start : start + _QUERIES], radius + 1)
        queries = np.repeat(np.arange(start, start + len(limits) - 1), (limits[1:] - limits[:-1]).astype(np.int64))
        later = found > queries
        yield queries[later], found[later]


def _assign(embeddings: EmbeddingFile, num_cells: int) -> npt.NDArray[np.int32]:
    """The nearest cells of each row, (N, 2), or (N, 1) where there is one cell."""
    import faiss

    if num_cells == 1:
        return np.zeros((embeddings.num_rows, 1), np.int32)
    generator = np.random.default_rng(_SEED)
    sample = generator.choice(embeddings.num_rows, min(embeddings.num_rows, num_cells * _SAMPLE_PER_CELL), replace=False)
    kmeans = faiss.Kmeans(embeddings.width, num_cells, niter=10, spherical=True, seed=_SEED + 1, min_points_per_centroid=1)
    kmeans.train(embeddings.read(np.sort(sample)))
    nearest = np.empty((embeddings.num_rows, _NEAREST), np.int32)
    for start in range(0, embeddings.num_rows, _BLOCK):
        rows = slice(start, start + _BLOCK)
        nearest[rows] = kmeans.index.search(embeddings.read(rows), _NEAREST)[1]
    return nearest


def _pairs_within(embeddings: EmbeddingFile, members: npt.NDArray[np.int64], *, least: float) -> "Pairs":
    """All pairs among these rows, block by block, so that a crowded cell costs time and not memory."""
    import faiss

    blocks = [members[start : start + _BLOCK] for start in range(0, len(members), _BLOCK)]
    for number, stored in enumerate(blocks):
        index = faiss.IndexFlatIP(embeddings.width)
        index.add(embeddings.read(stored))
        for asked in blocks[: number + 1]:
            for start in range(0, len(asked), 1024):
                queries = asked[start : start + 1024]
                limits, _, found = index.range_search(embeddings.read(queries), least)
                first = np.repeat(queries, (limits[1:] - limits[:-1]).astype(np.int64))
                second = stored[found]
                yield first[first < second], second[first < second]
