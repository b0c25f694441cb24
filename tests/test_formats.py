"""Files of an older commit open in today's code: a run, a data set, features, a checkpoint (tests/files/formats/README.md)."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from captioner import status
from dataset_builder import query
from foundry.images.decoding import DecodeLimits, decode_image
from foundry.images.reader import ImageReader, reference_of
from model.formats.checkpoint import load_checkpoint
from tests.trainer.tiny_training import tiny_config
from trainer.config.ladder import Rung
from trainer.config.network import NetworkConfig
from trainer.config.running import CheckpointConfig
from trainer.features.sources import open_source
from trainer.features.store import FeatureStore, SampleRequest
from trainer.fit import main as fit
from trainer.monitoring.run_folder import read_metrics

FILES = Path(__file__).resolve().parent / "files" / "formats"
CAPTIONED = 8


def ask(capsys: pytest.CaptureFixture[str], folder: str, sql: str) -> list[dict[str, Any]]:
    """The rows that dataset_builder.query prints."""
    assert query.main(query.QueryConfig(run=str(FILES / folder), sql=sql, format="json")) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows


def test_a_run_is_asked_and_its_status_read(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = ask(capsys, "run", "SELECT count(*) AS captions, count(DISTINCT key) AS images FROM captions")
    assert row == {"captions": CAPTIONED, "images": CAPTIONED}
    assert ask(capsys, "run", "SELECT reason FROM rejected") == [{"reason": "not_an_image"}]
    alt_text = "SELECT alt_text FROM images WHERE key = 'picture-03'"
    assert ask(capsys, "run", alt_text) == [{"alt_text": "an owl of the number 3"}]
    assert ask(capsys, "run", "SELECT sum(count)::INT AS nouns FROM noun_counts")[0]["nouns"] > 0
    assert status.main(status.StatusConfig(run=str(FILES / "run"), json=True)) == 0
    found = json.loads(capsys.readouterr().out)
    counts = {"planned": 9, "captioned": CAPTIONED, "rejected": 1, "units": 3, "units_committed": 3}
    assert {name: found[name] for name in counts} == counts


def test_a_data_set_is_asked_and_is_a_source_of_features(capsys: pytest.CaptureFixture[str]) -> None:
    samples = ask(capsys, "dataset", "SELECT key, split FROM samples ORDER BY key")
    assert [row["key"] for row in samples] == [f"picture-{number:02d}" for number in range(CAPTIONED)]
    assert {row["split"] for row in samples} == {"train", "validation"}
    funnel = ask(capsys, "dataset", "SELECT kept FROM funnel")
    assert (funnel[0]["kept"], funnel[-1]["kept"]) == (9, CAPTIONED)
    rows = [row for table in open_source(str(FILES / "dataset")).tables() for row in table.to_pylist()]
    assert len(rows) == CAPTIONED
    assert {caption["name"] for caption in rows[0]["captions"]} == {"dense", "alt_text"}
    with ImageReader() as reader:
        assert decode_image(reader.read(reference_of(rows[0])), limits=DecodeLimits()).pixels.shape == (40, 48, 3)


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
