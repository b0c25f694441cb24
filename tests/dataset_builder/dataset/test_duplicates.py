"""Duplicates: what is found, what is not, which image stays."""

import itertools
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_builder.dataset import near_pairs as cosine
from dataset_builder.dataset.duplicates import CANDIDATES, DuplicateGroups, Duplicates, find_duplicates
from dataset_builder.dataset.near_pairs import hamming_pairs
from dataset_builder.dataset.recipe import DedupConfig

RNG = np.random.default_rng(7)
HASHES = RNG.integers(2**62, 2**63, 5).tolist()


def _candidate(key: str, **facts: Any) -> dict[str, Any]:
    return {"run": "a", "key": key, "content_hash": key, "area_px": 100, "clip_mean": None, "perceptual_hash": None} | facts


def _find(rows: list[dict[str, Any]], directory: Path, *, embeddings: Any = (), **config: Any) -> Duplicates:
    batches = pa.Table.from_pylist(rows, schema=CANDIDATES).to_batches(max_chunksize=3)
    return find_duplicates(batches, embeddings=embeddings, config=DedupConfig(**config), directory=str(directory))


def _kept(found: Duplicates) -> list[str]:
    return [row["key"] for row in found.groups.to_pylist() if row["is_kept"]]


def _embeddings(keys: list[str], vectors: np.ndarray) -> pa.RecordBatch:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    lists = pa.array(list((vectors / lengths).astype(np.float16)), pa.list_(pa.float16()))
    return pa.record_batch({"run": pa.array(["a"] * len(keys)), "key": pa.array(keys), "embedding": lists})


def test_the_same_bytes_are_one_image_and_the_first_key_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)  # it is not in the core of the package
    rows = [_candidate("c", content_hash="x"), _candidate("b"), _candidate("a", content_hash="x"), _candidate("d")]
    found = _find(rows, tmp_path, exact=True)
    assert found.groups["exact_group"].to_pylist() == [0, None, 0, None]
    assert found.groups["near_group"].null_count == 4
    assert _kept(found) == ["b", "a", "d"]


def test_the_largest_stays_then_the_best_clip_then_the_key(tmp_path: Path) -> None:
    large = [_candidate("b", area_px=9), _candidate("a", area_px=8, clip_mean=0.9)]
    fitting = [_candidate("c", clip_mean=0.1), _candidate("d", clip_mean=0.3), _candidate("e")]
    rows = [row | {"perceptual_hash": code} for group, code in ((large, HASHES[1]), (fitting, HASHES[2])) for row in group]
    found = _find(rows, tmp_path, max_hamming=4)
    assert found.groups["near_group"].to_pylist() == [0, 0, 1, 1, 1]
    assert found.groups["exact_group"].null_count == 5
    assert _kept(found) == ["b", "d"]


def test_near_groups_hold_whole_exact_groups_and_chains(tmp_path: Path) -> None:
    hashes = [HASHES[3], HASHES[3] ^ 0b111, HASHES[3] ^ 0b111111, HASHES[4]]
    rows = [_candidate(str(number), perceptual_hash=code) for number, code in enumerate(hashes)]
    rows.append(_candidate("copy", content_hash="2"))  # not scored, but with the bytes of "2"
    found = _find(rows, tmp_path, max_hamming=3)
    assert found.groups["near_group"].to_pylist() == [0, 0, 0, None, 0]
    assert found.groups["exact_group"].to_pylist() == [None, None, 0, None, 0]
    assert found.num_without_hash == 1
    assert found.groups["is_copy"].to_pylist() == [False, False, False, False, True]
    assert _kept(found) == ["0", "3"]  # "2" is no copy of it, only nearly the same


def test_plain_pictures_are_not_compared_by_hash(tmp_path: Path) -> None:
    rows = [_candidate(key, perceptual_hash=-(2**63)) for key in "ab"]  # only the first coefficient: one colour
    found = _find(rows, tmp_path, max_hamming=8)
    assert found.num_without_hash == 2
    assert _kept(found) == ["a", "b"]


def test_embeddings_join_what_points_the_same_way_in_any_order(tmp_path: Path) -> None:
    vectors = RNG.normal(size=(6, 32))
    vectors[4] = vectors[1] + 0.02 * RNG.normal(size=32)
    rows = [_candidate(str(number)) for number in range(7)]  # the last one has no embedding
    batches = [_embeddings(["5", "4", "unknown"], vectors[[5, 4, 4]]), _embeddings(["0", "1", "2", "3"], vectors[:4])]
    found = _find(rows, tmp_path, embeddings=batches, min_cosine=0.95)
    assert found.groups["near_group"].to_pylist() == [None, 0, None, None, 0, None, None]
    assert found.num_without_embedding == 1
    assert not list(tmp_path.iterdir())


def test_embeddings_of_two_models_cannot_be_compared(tmp_path: Path) -> None:
    batches = [_embeddings(["0"], np.ones((1, 8))), _embeddings(["1"], np.ones((1, 4)))]
    with pytest.raises(ValueError, match="score all runs with one CLIP"):
        _find([_candidate("0"), _candidate("1")], tmp_path, embeddings=batches, min_cosine=0.9)


def test_nothing_to_look_at(tmp_path: Path) -> None:
    assert not len(_find([], tmp_path, exact=True, max_hamming=2, min_cosine=0.9).groups)


@pytest.mark.parametrize("radius", [0, 1, 3, 4, 8])
def test_every_pair_within_the_radius_is_found_once_and_no_other(radius: int) -> None:
    codes = RNG.integers(-(2**63), 2**63 - 1, 300, dtype=np.int64)
    flips = np.array([sum(1 << int(bit) for bit in RNG.choice(63, radius, replace=False)) for _ in codes], np.int64)
    codes = np.unique(np.concatenate([codes, codes ^ flips, codes ^ (flips << 1)]))
    found = [pair for one, other in hamming_pairs(codes, radius=radius) for pair in zip(one, other, strict=True)]
    distance = np.bitwise_count((codes[:, None] ^ codes[None, :]).view(np.uint64))
    assert len(found) == len(set(found))
    assert set(found) == {tuple(pair) for pair in np.argwhere(np.triu(distance <= radius, 1))}


def test_cells_and_blocks_find_the_planted_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cosine, "CELL_ROWS", 64)
    monkeypatch.setattr(cosine, "_BLOCK", 50)
    vectors = RNG.normal(size=(600, 24))
    vectors[300:] = vectors[:300] + 0.01 * RNG.normal(size=(300, 24))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with closing(cosine.EmbeddingFile(tmp_path / "embeddings")) as file:
        for part in np.array_split(vectors, 7):
            file.append(part.astype(np.float16))
        pairs = list(cosine.cosine_pairs(file, least=0.99))
    found = {pair for one, other in pairs for pair in zip(one.tolist(), other.tolist(), strict=True)}
    assert found == {(row, row + 300) for row in range(300)}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=15))
def test_groups_are_the_connected_components(pairs: list[tuple[int, int]]) -> None:
    groups = DuplicateGroups(10)
    for first, second in pairs:
        groups.join(np.array([first]), np.array([second]))
        if first % 3 == 0:
            groups.labels()  # merging in between changes nothing
    labels = groups.labels()
    assert all(labels[first] == labels[second] for first, second in pairs)
    linked = {frozenset((row,)) for row in range(10)}
    for first, second in pairs:
        joined = [group for group in linked if first in group or second in group]
        linked = (linked - set(joined)) | {frozenset(itertools.chain(*joined))}
    assert {frozenset(np.flatnonzero(labels == label).tolist()) for label in set(labels)} == linked
    assert all(label == np.flatnonzero(labels == label).min() for label in set(labels))


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"max_hamming.*min_cosine"):
        DedupConfig(max_hamming=9, min_cosine=0.1)
