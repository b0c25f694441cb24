"""Losses of samples are recorded once each, whatever was killed, and SQL finds samples by them; SQL leaves out and weighs."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dataset_builder.query import QueryConfig
from dataset_builder.query import main as query
from dataset_builder.schema import LOSSES
from dataset_builder.sql.dataset_files import open_stored
from dataset_builder.sql.losses import LOSSES_FOLDER
from foundry.errors import UserError
from foundry.storage.folder import Folder
from tests.dataset_builder.small_run import SmallRun
from tests.trainer.tiny_training import newest_weights, tiny_config, training_losses, write_store
from trainer.config.data import DataConfig
from trainer.config.ladder import Rung
from trainer.config.running import CheckpointConfig, WatchConfig
from trainer.config.train import TrainConfig
from trainer.data.weights import read_weights
from trainer.features.store import FeatureStore
from trainer.fit import main
from trainer.monitoring.losses import LossRecorder, remove_losses
from trainer.monitoring.run_folder import LOG, read_metrics

HALF = (Rung(resolution=16, images=20, batch_size=4),)
WATCH = WatchConfig(every_steps=1, validate_every_images=0, sample_every_images=0, record_losses_every_steps=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A captioning run, whose images are others than those of the features: SQL here names these."""
    return SmallRun().write(Folder(str(tmp_path_factory.mktemp("run")))).url


@pytest.fixture(scope="module")
def features(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("features")
    write_store(root, source=dataset)
    return root


def _config(features: Path, root: Path, **changes: Any) -> TrainConfig:
    return tiny_config(root, features=str(features), **{"watch": WATCH} | changes)


def _recorded(config: TrainConfig) -> list[dict[str, Any]]:
    files = sorted((Path(config.run_folder) / LOSSES_FOLDER).iterdir())
    tables = [pq.read_table(file) for file in files]
    assert all(table.schema.equals(LOSSES) for table in tables)
    rows: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
    return rows


def _same(first: TrainConfig, second: TrainConfig) -> bool:
    ours, theirs = newest_weights(first), newest_weights(second)
    return training_losses(first) == training_losses(second) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def recorded(features: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    config = _config(features, tmp_path_factory.mktemp("recorded"))
    assert main(config) == 0
    return config


def test_the_rows_are_the_samples_of_each_step(features: Path, recorded: TrainConfig, tmp_path: Path) -> None:
    rows = _recorded(recorded)
    assert Counter(row["images_seen"] for row in rows) == dict.fromkeys(range(4, 44, 4), 4)
    assert {row["resolution"] for row in rows} == {16} and all(0 <= row["timestep"] < 1000 for row in rows)
    assert len({row["timestep"] for row in rows}) > 30
    for images_seen, mean in training_losses(recorded).items():
        own = [row["loss"] for row in rows if row["images_seen"] == images_seen]
        assert sum(own) / 4 == pytest.approx(mean, rel=1e-6)
    off = _config(features, tmp_path, watch=replace(WATCH, record_losses_every_steps=0))
    assert main(off) == 0
    assert _same(off, recorded) and not (Path(off.run_folder) / LOSSES_FOLDER).exists()
    some = _config(features, tmp_path / "some", watch=replace(WATCH, record_losses_every_steps=3))
    assert main(some) == 0
    assert _recorded(some) == [row for row in rows if row["images_seen"] in (12, 24, 36)]


def test_a_step_that_is_made_again_is_recorded_once(features: Path, recorded: TrainConfig, tmp_path: Path) -> None:
    config = _config(features, tmp_path)
    assert main(replace(config, ladder=HALF)) == 0
    folder = Path(config.run_folder) / LOSSES_FOLDER
    lost = LossRecorder(Path(config.run_folder), rank=0, every_steps=1)  # two steps after the checkpoint, then a kill
    for step in (6, 7):
        lost.add(step=step, images_seen=4 * step, resolution=16, keys=["a"], timesteps=torch.ones(1), losses=torch.ones(1))
    lost.flush()
    (folder / ".000000000032-00000.parquet.ab").write_bytes(b"PAR1")
    assert main(config) == 0
    assert _recorded(config) == _recorded(recorded)


def test_what_cannot_be_written_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / LOSSES_FOLDER).write_text("a file where a folder is wanted")
    recorder = LossRecorder(tmp_path, rank=0, every_steps=1)
    recorder.add(step=1, images_seen=4, resolution=16, keys=["a"], timesteps=torch.ones(1), losses=torch.ones(1))
    with pytest.raises(UserError, match="cannot work in"):
        recorder.flush()
    remove_losses(tmp_path / "nowhere", after=0)


def test_sql_joins_losses_with_the_data_set(dataset: str, recorded: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT count(*) AS n, count(DISTINCT key) AS keys FROM losses"
    assert query(QueryConfig(run=dataset, sql=sql, training=recorded.run_folder, format="json")) == 0
    assert '"n": 40, "keys": 12' in capsys.readouterr().out
    with open_stored(dataset, training=recorded.run_folder) as database:
        joined = "SELECT captions.key FROM losses JOIN captions ON captions.key = 'img_' || losses.key[4:4] GROUP BY ALL"
        assert 0 < len(database.fetch(joined)) <= 6 and "losses" in database.comments
        with pytest.raises(UserError, match="there is no column los: did you mean loss"):
            database.fetch("SELECT los FROM losses")


def test_losses_that_are_not_there_are_explained(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert query(QueryConfig(run=dataset, sql="FROM losses", training=str(tmp_path), format="json")) == 0
    printed = capsys.readouterr()
    assert printed.out == "[]\n" and f"losses is empty, {tmp_path} recorded none yet" in printed.err
    with pytest.raises(UserError, match="nowhere is not the folder of a training: give RUN_DIR/<stage>") as error:
        open_stored(dataset, training=str(tmp_path / "nowhere"))
    assert error.value.setting == "training"
    with open_stored(dataset) as database, pytest.raises(UserError, match="there is no table losses"):
        database.fetch("FROM losses")


def test_sql_leaves_samples_out_as_a_list_does(features: Path, tmp_path: Path) -> None:
    """Also by the losses that were recorded until then; the same SQL keeps its answer, so that a resume is bit for bit."""
    (tmp_path / "list.txt").write_text("u0r3\nu1r5\n")
    listed = _config(features, tmp_path / "listed", data=DataConfig(loader_threads=1, skip=str(tmp_path / "list.txt")))
    sql = "SELECT unnest(['u0r3', 'u1r5']) AS key UNION SELECT key FROM losses WHERE loss > 100"
    asked = _config(features, tmp_path / "asked", data=DataConfig(loader_threads=1, skip=sql))
    assert main(listed) == main(replace(asked, ladder=HALF)) == 0
    with pytest.MonkeyPatch.context() as patch:  # were it asked again, the data set would not be there
        patch.setattr("dataset_builder.sql.dataset_files.open_stored", lambda *_args, **_kwargs: pytest.fail("asked again"))
        assert main(asked) == 0
    assert _same(listed, asked)
    log = (Path(asked.run_folder) / LOG).read_text()
    assert f"{asked.run_folder}/skip.parquet leaves out 2 samples, by 2 keys" in log
    assert f"skip: {sql}" in (Path(asked.run_folder) / "config.yaml").read_text().replace("\n    ", " ")
    more = replace(asked, ladder=(Rung(resolution=16, images=60, batch_size=4),))
    assert main(replace(more, data=replace(asked.data, skip="SELECT key FROM losses WHERE key LIKE 'u0%'"))) == 0
    seen = {row["key"] for row in _recorded(more) if row["images_seen"] > 40 and row["key"].startswith("u0")}
    assert seen <= {"u0r3"}  # which had no loss, since the SQL of before left it out


def test_weights_say_how_often_a_sample_is_seen(features: Path, tmp_path: Path) -> None:
    sql = "SELECT 'u0r' || range AS key, CASE WHEN range < 3 THEN 3 ELSE 0.5 END AS weight FROM range(6)"
    data, rare = DataConfig(loader_threads=1, weights=sql), CheckpointConfig(every_images=1000)
    config = _config(features, tmp_path, data=data, checkpoint=rare, images=400, batch_size=20)
    assert main(replace(config, ladder=(Rung(resolution=16, images=200, batch_size=20),))) == main(config) == 0
    seen = Counter(row["key"] for row in _recorded(config))
    passes = 400 / (3 * 3 + 3 * 0.5 + 6)  # 24.2
    for key, weight in {"u0r0": 3, "u0r2": 3, "u0r4": 0.5, "u1r0": 1, "u1r5": 1}.items():
        assert seen[key] == pytest.approx(passes * weight, abs=3 + weight), key
    log = (Path(config.run_folder) / LOG).read_text()
    assert "weights.parquet weighs samples: a pass has 16 images" in log
    assert "from 12 samples in 2 buckets" in log and "one of weight 1 is seen 24.2 times" in log
    unbroken = replace(config, run_dir=str(tmp_path / "unbroken"))
    assert main(unbroken) == 0
    assert _same(config, unbroken)


def test_weights_reach_the_store_by_key(features: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["u0r1", "elsewhere"], "weight": pa.array([2, 5], pa.int32())}), tmp_path / "w.parquet")
    folder = str(features / "alignment" / "16")
    weights = read_weights(str(tmp_path / "w.parquet"))
    store = FeatureStore.open(folder, skip={"u0r0"}, weights=weights)
    assert store.weights is not None and store.weights[0].tolist() == [2, 1, 1, 1, 1] and store.weights[1].tolist() == [1] * 6
    assert store.images_per_pass("train") == 12 and FeatureStore.open(folder).images_per_pass("train") == 12
    assert store.content != FeatureStore.open(folder, skip={"u0r0"}).content
    unnamed = pa.table({"key": ["elsewhere"], "weight": [5.0]})
    plain = FeatureStore.open(folder)
    assert FeatureStore.open(folder, weights=unnamed).weights is not None and plain.weights is None


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"key": ["a"]}), "w.parquet has no column weight, found key: expected Parquet with a column `key`"),
        (pa.table({"weight": [1.0]}), "w.parquet has no column key, found weight"),
        (pa.table({"key": ["a", "b", "b"], "weight": [1.0, 2.0, 3.0]}), "w.parquet has the key b more than once"),
        (pa.table({"key": ["a"], "weight": ["1"]}), "the column weight is string with 0 empty rows"),
        (pa.table({"key": ["a", "b"], "weight": [1.0, -1.0]}), "expected weights from 0 to 1000, found -1.0 for b"),
        (pa.table({"key": ["a"], "weight": [float("nan")]}), "expected weights from 0 to 1000, found nan for a"),
        (None, "cannot read .*w.parquet"),
    ],
)
def test_what_is_not_weights_is_said_in_a_line(tmp_path: Path, table: pa.Table | None, message: str) -> None:
    path = tmp_path / "w.parquet"
    if table is None:
        path.write_text("key,weight\n")
    else:
        pq.write_table(table, path)
    with pytest.raises(UserError, match=message) as error:
        read_weights(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"skip": "SELECT keys FROM captions"}, "there is no column keys: did you mean key"),
        ({"skip": "SELECT caption FROM captions"}, "the answer of the SQL has no column key, found caption"),
        ({"weights": "SELECT key, 2 AS weight FROM captions"}, "has the key img_0 more than once"),
        ({"weights": "SELECT key, -2 AS weight FROM images"}, "expected weights from 0 to 1000, found -2"),
        ({"skip": "FROM images", "dataset": "/nowhere"}, "/nowhere is neither a run nor a data set"),
        ({"weights": "SELECT 'u' || u || 'r' || r AS key, 0 AS weight FROM range(4) a(u), range(6) b(r)"}, "weight 0"),
    ],
)
def test_sql_that_does_not_answer_is_said_in_a_line(features: Path, tmp_path: Path, data: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        main(_config(features, tmp_path, data=DataConfig(**data)))  # type: ignore[arg-type]
    assert error.value.setting == f"data.{list(data)[-1]}" and "\n" not in str(error.value)


def test_workers_elsewhere_get_absolute_paths_and_the_same_sql(features: Path, tmp_path: Path) -> None:
    from trainer.training.ray_workers import with_absolute_paths  # Ray Train takes seconds to import

    data = DataConfig(skip="\n select key from images", weights="weights.parquet", dataset="data")
    assert data.paths == ["weights.parquet", "data"]
    found = with_absolute_paths(_config(features, tmp_path, data=data)).data
    assert found == replace(data, weights=str(Path("weights.parquet").absolute()), dataset=str(Path("data").absolute()))


def test_features_that_do_not_know_their_data_set_ask_for_it(tmp_path: Path) -> None:
    write_store(tmp_path / "features")
    with pytest.raises(UserError, match="does not record the data set that it was made from") as error:
        main(tiny_config(tmp_path, data=DataConfig(skip="SELECT key FROM images")))
    assert error.value.setting == "data.dataset"


def test_every_step_has_a_row_of_metrics(recorded: TrainConfig) -> None:
    assert {row["images_seen"] for row in read_metrics(Path(recorded.run_folder))} == {
        r["images_seen"] for r in _recorded(recorded)
    }
