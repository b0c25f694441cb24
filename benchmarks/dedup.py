"""Recall of near copies by `build --dedup`, and the growth of its time with the images: `python -m benchmarks.dedup`.

Random perceptual hashes and embeddings with planted copies. On a part, pairs are compared with all
pairs by brute force. find_duplicates runs as `build` calls it, on all images and on a quarter of them: `growth` is 4 where the
time is proportional, 16 where each image is compared with each. hamming_recall has to be 1: the index misses no pair.
"""

import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report import print_report
from foundry.command_line import run_command

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

_RADIUS = 4
_LEAST_COSINE = 0.95
_NOISE = 0.2
"""Noise of a copy's embedding, relative to the length 1 of its original: their cosine is about 0.98."""


@dataclass(frozen=True)
class DedupBenchmarkConfig:
    """Settings of the benchmark."""

    images: int = 200_000
    """Perceptual hashes, a tenth of them near copies."""
    compared: int = 20_000
    """Hashes that are compared each with each as well."""
    embeddings: int = 20_000
    """CLIP embeddings, a tenth of them near copies."""
    width: int = 128
    """Numbers in an embedding."""


def main(config: DedupBenchmarkConfig) -> int:
    """Prints the figures; returns 0."""
    import numpy as np

    rng = np.random.default_rng(0)
    figures = {"images": float(config.images), **_hamming_pairs(config.compared, rng), **_dedup(config.images, rng)}
    figures |= _cosine_pairs(config.embeddings, config.width, rng)
    figures["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print_report("Duplicates", figures)
    return 0


def _hamming_pairs(number: int, rng: "np.random.Generator") -> dict[str, float]:
    """The pairs that the index finds against those of all pairs that are within the radius."""
    import numpy as np

    from dataset_builder.dataset.near_pairs import hamming_pairs

    codes = np.unique(_hashes(number, rng)[0])
    started = time.perf_counter()
    found = {
        pair for one, other in hamming_pairs(codes, radius=_RADIUS) for pair in zip(one.tolist(), other.tolist(), strict=True)
    }
    index_s = time.perf_counter() - started
    true = set()
    started = time.perf_counter()
    for place, code in enumerate(codes):
        near = np.flatnonzero(np.bitwise_count((codes[place + 1 :] ^ code).view(np.uint64)) <= _RADIUS)
        true |= {(place, place + 1 + int(other)) for other in near}
    brute_force_s = time.perf_counter() - started
    return {
        "hamming_recall": len(found & true) / len(true),
        "hamming_precision": len(found & true) / len(found),
        "pairs": len(true),
        "compared": len(codes),
        "index_s": index_s,
        "brute_force_s": brute_force_s,
    }


def _dedup(number: int, rng: "np.random.Generator") -> dict[str, float]:
    """Grouping as `build` does it, of a quarter of the images and of all."""
    seconds = []
    _groups(_hashes(1000, rng)[0])  # imports what is needed
    for size in (number // 4, number):
        codes, original = _hashes(size, rng)
        started = time.perf_counter()
        groups = _groups(codes)
        seconds.append(time.perf_counter() - started)
    copies = original >= 0
    recall = float((groups[copies] == groups[original[copies]]).mean())
    return {"quarter_s": seconds[0], "dedup_s": seconds[1], "growth": seconds[1] / seconds[0], "copies_grouped": recall}


def _groups(codes: "NDArray[np.int64]") -> "NDArray[np.int64]":
    """The near group of each image, -1 for those alone, (images,)."""
    import pyarrow.compute as pc

    from dataset_builder.dataset.duplicates import find_duplicates
    from dataset_builder.dataset.recipe import DedupConfig

    with tempfile.TemporaryDirectory() as directory:
        found = find_duplicates(_candidates(codes), config=DedupConfig(max_hamming=_RADIUS), directory=directory)
    groups: NDArray[np.int64] = pc.fill_null(found.groups["near_group"], -1).to_numpy()
    return groups


def _candidates(codes: "NDArray[np.int64]") -> "Iterator[pa.RecordBatch]":
    import numpy as np
    import pyarrow as pa

    from dataset_builder.dataset.duplicates import CANDIDATES

    for start in range(0, len(codes), 4096):
        part = codes[start : start + 4096]
        keys = [f"sa_{number:09d}" for number in range(start, start + len(part))]
        same = {"run": ["benchmark"] * len(part), "area_px": np.full(len(part), 1 << 20), "clip_mean": [None] * len(part)}
        columns = {"key": keys, "content_hash": keys, "perceptual_hash": part, **same}
        yield pa.RecordBatch.from_pydict({name: columns[name] for name in CANDIDATES.names}, schema=CANDIDATES)


def _cosine_pairs(number: int, width: int, rng: "np.random.Generator") -> dict[str, float]:
    """The pairs that are found in the cells of k-means against those of all pairs that point the same way."""
    import numpy as np

    from dataset_builder.dataset.near_pairs import EmbeddingFile, cosine_pairs

    vectors = rng.normal(size=(number, width)) / np.sqrt(width)
    original = _originals(number, rng)
    copies = original >= 0
    vectors[copies] = vectors[original[copies]] + _NOISE * rng.normal(size=(int(copies.sum()), width)) / np.sqrt(width)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as directory, closing(EmbeddingFile(Path(directory) / "embeddings")) as file:
        file.append(vectors.astype(np.float16))
        started = time.perf_counter()
        pairs = list(cosine_pairs(file, least=_LEAST_COSINE))
        seconds = time.perf_counter() - started
        stored = file.read(slice(None))
    found = {pair for one, other in pairs for pair in zip(one.tolist(), other.tolist(), strict=True)}
    true = set()
    for start in range(0, number, 1024):
        one, other = np.nonzero(stored[start : start + 1024] @ stored.T >= _LEAST_COSINE)
        true |= {(int(a) + start, int(b)) for a, b in zip(one, other, strict=True) if a + start < b}
    return {"embeddings": number, "cosine_recall": len(found & true) / len(true), "cosine_s": seconds}


def _hashes(number: int, rng: "np.random.Generator") -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
    """Random codes, and whose near copy each is, -1 for none, both (number,). Copies differ in up to _RADIUS bits."""
    import numpy as np

    codes = rng.integers(-(2**63), 2**63 - 1, number, dtype=np.int64)
    codes = np.where(np.bitwise_count(codes.view(np.uint64)) < 32, ~codes, codes)  # with few ones it would be a plain picture's
    original = _originals(number, rng)
    copies = original >= 0
    bits = np.uint64(1) << rng.integers(0, 64, (int(copies.sum()), _RADIUS), dtype=np.uint64)
    codes[copies] = codes[original[copies]] ^ np.bitwise_xor.reduce(bits, axis=1).view(np.int64)
    return codes, original


def _originals(number: int, rng: "np.random.Generator") -> "NDArray[np.int64]":
    """Index of the original of each row of the last tenth, -1 for the others, (number,)."""
    import numpy as np

    copies = number // 10
    return np.concatenate([np.full(number - copies, -1), rng.integers(0, number - copies, copies)])


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            DedupBenchmarkConfig, main, prog="python -m benchmarks.dedup", example="python -m benchmarks.dedup --images 200000"
        )
    )
