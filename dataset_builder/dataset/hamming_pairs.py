"""All pairs of 64-bit codes that differ in few bits, through an index and not by comparing each with each.

Source: Norouzi, Punjani, Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012, as faiss has it: where two
codes differ in r bits, one of 3 parts of them differs in r // 3 at most. So no pair is missed.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_PARTS = 3
_BITS_PER_PART = 21
_QUERIES = 4096


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
