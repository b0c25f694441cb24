"""The same batches whatever reads them: threads, ranks, a resumed run."""

import itertools

import pytest
import torch

from tests.trainer.tiny_training import write_store
from trainer.data.loader import CaptionChoice, Loader
from trainer.data.order import DataOrder
from trainer.features.store import FeatureBatch, FeatureStore

COUNT = 8


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore.open(str(write_store(tmp_path_factory.mktemp("features"), num_units=8)))


def batches(store: FeatureStore, *, start: int = 0, threads: int = 2, rank: int = 0, world_size: int = 1) -> list[FeatureBatch]:
    order = DataOrder(store.samples("train"), seed=0, batch_size=4)
    captions = CaptionChoice(dropout=0.3, weights={"dense": 1.0, "alt_text": 2.0})
    with Loader(
        store,
        order,
        captions=captions,
        start_images_seen=start * 4,
        num_workers=threads,
        rank=rank,
        world_size=world_size,
    ) as loader:
        return list(itertools.islice(loader, COUNT - start))


def assert_same(one: list[FeatureBatch], other: list[FeatureBatch]) -> None:
    assert [batch.keys for batch in one] == [batch.keys for batch in other]
    for first, second in zip(one, other, strict=True):
        assert first.captions is not None and second.captions is not None
        assert first.log_variance is not None and second.log_variance is not None
        assert torch.equal(first.mean, second.mean) and torch.equal(first.log_variance, second.log_variance)
        assert torch.equal(first.captions.tokens, second.captions.tokens)
        assert torch.equal(first.captions.lengths, second.captions.lengths)
        assert first.texts == second.texts and torch.equal(first.sizes, second.sizes)


@pytest.mark.parametrize("threads", [1, 4])
def test_the_number_of_threads_changes_nothing(store: FeatureStore, threads: int) -> None:
    assert_same(batches(store, threads=0), batches(store, threads=threads))


def test_a_resumed_run_continues(store: FeatureStore) -> None:
    assert_same(batches(store)[3:], batches(store, start=3))


def test_ranks_share_the_global_batch(store: FeatureStore) -> None:
    whole, parts = batches(store), [batches(store, rank=rank, world_size=2) for rank in range(2)]
    for index, batch in enumerate(whole):
        halves = [part[index] for part in parts]
        assert batch.keys == halves[0].keys + halves[1].keys
        assert batch.texts is not None and batch.texts == (halves[0].texts or []) + (halves[1].texts or [])
        assert halves[0].bucket == halves[1].bucket == batch.bucket
        assert torch.equal(batch.mean, torch.cat([half.mean for half in halves]))


def test_what_does_not_divide_is_refused(store: FeatureStore) -> None:
    order = DataOrder(store.samples("train"), seed=0, batch_size=4)
    with pytest.raises(ValueError, match="4 images cannot be shared by 3 workers"):
        Loader(store, order, world_size=3)
    with pytest.raises(ValueError, match="whole batches of 4, found 6"):
        Loader(store, order, start_images_seen=6)


def test_the_wait_is_measured(store: FeatureStore) -> None:
    order = DataOrder(store.samples("train"), seed=0, batch_size=4)
    with Loader(store, order, num_workers=0) as loader:
        next(loader)
        assert loader.wait_s > 0
