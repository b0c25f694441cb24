"""Files of an older commit open in today's code: a run, a data set, features, a checkpoint (tests/files/formats/README.md)."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from captioner.status import read_status
from dataset_builder.sql.database import open_stored
from foundry.storage.folder import Folder
from model.formats.checkpoint import load_checkpoint
from tests.trainer.tiny_training import tiny_config
from trainer.config import CheckpointConfig, NetworkConfig, Rung
from trainer.features.sources import open_source
from trainer.features.store import FeatureStore, SampleRequest
from trainer.fit import main as fit
from trainer.monitoring.run_folder import read_metrics

FILES = Path(__file__).resolve().parent / "files" / "formats"
CAPTIONED, REJECTED = 8, 1


def test_a_run_is_asked_and_its_status_read() -> None:
    with open_stored(str(FILES / "run")) as run:
        (row,) = run.fetch("SELECT count(*) AS captions, count(DISTINCT key) AS images FROM captions").to_pylist()
        assert row == {"captions": CAPTIONED, "images": CAPTIONED}
        assert run.fetch("SELECT reason FROM rejected").to_pylist() == [{"reason": "not_an_image"}]
        assert run.fetch("SELECT alt_text FROM images WHERE key = 'picture-03'").to_pylist() == [
            {"alt_text": "an owl of the number 3"}
        ]
        assert run.fetch("SELECT sum(count) AS nouns FROM noun_counts").to_pylist()[0]["nouns"] > 0
    status = read_status(Folder(str(FILES / "run")))
    assert (status.planned, status.captioned, status.rejected, status.remaining) == (9, CAPTIONED, REJECTED, 0)


def test_a_data_set_is_asked_and_its_images_decoded() -> None:
    with open_stored(str(FILES / "dataset")) as dataset:
        samples = dataset.fetch("SELECT key, split, len(captions) AS captions FROM samples ORDER BY key").to_pylist()
        assert [row["key"] for row in samples] == [f"picture-{number:02d}" for number in range(CAPTIONED)]
        assert {row["split"] for row in samples} == {"train", "validation"}
        funnel = dataset.fetch("SELECT step, kept, dropped FROM funnel").to_pylist()
    assert (funnel[0]["kept"], funnel[-1]["kept"]) == (9, CAPTIONED)
    tables = list(open_source(str(FILES / "dataset")).tables())
    assert sum(table.num_rows for table in tables) == CAPTIONED
    rows = [row for table in tables for row in table.to_pylist()]
    assert {caption["name"] for caption in rows[0]["captions"]} > {"alt_text"}


def test_features_are_read() -> None:
    store = FeatureStore.open(str(FILES / "features" / "alignment" / "32"))
    assert store.splits == ("train", "validation") and store.missing_units == 0
    ((bucket, ((unit, _), *_)), *_) = store.samples("train").items()
    batch = store.read([SampleRequest(unit=unit, row=0, caption=0), SampleRequest(unit=unit, row=0, caption=None)])
    assert batch.mean.shape == (2, 16, *bucket) and bool(batch.mean.isfinite().all())
    assert batch.captions is not None and batch.captions.tokens.shape[1] == 192
    assert batch.texts is not None and batch.texts[0] and not batch.texts[1]


def test_a_checkpoint_is_loaded() -> None:
    network, pipeline = load_checkpoint(FILES / "training" / "alignment" / "checkpoints" / "000000000012")
    assert (pipeline.objective, pipeline.resolution, pipeline.vae.name) == ("diffusion", 32, "mini")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values())


def test_a_training_is_resumed_as_it_went_on_then(tmp_path: Path) -> None:
    """The run folder has the metrics of the unbroken training, and its checkpoint of half the way alone."""
    shutil.copytree(FILES / "training", tmp_path / "runs")
    run = tmp_path / "runs" / "alignment"
    then = {row["images_seen"]: row["loss"] for row in read_metrics(run) if row["kind"] == "train"}
    config = tiny_config(
        tmp_path,
        features=str(FILES / "features"),
        ladder=(Rung(resolution=32, images=24, batch_size=4),),
        network=NetworkConfig(width=8, depth=1, num_heads=2),
        checkpoint=CheckpointConfig(every_images=12, keep_last=2),
    )
    assert fit(config) == 0
    now = {row["images_seen"]: row["loss"] for row in read_metrics(run) if row["kind"] == "train"}
    assert max(then) == 24 and now == pytest.approx(then, rel=2e-3)
    starts = [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]
    assert [start["images_seen"] for start in starts] == [0, 12]
