"""The stores that growth is measured on are ones that the commands open, and a slope is that of a line."""

from pathlib import Path

import pytest

from benchmarks.scale import slope, start_training, write_features, write_run
from dataset_builder.runs.status import read_status
from dataset_builder.sql.run_files import open_run
from foundry.records.index import INDEX_FILE, LEAST_RECORDS
from foundry.storage.folder import Folder

UNITS = LEAST_RECORDS + 1


def test_slopes() -> None:
    assert slope({1000: 1.0, 3000: 1.5, 2000: 1.25}) == pytest.approx(25)
    assert slope({1000: 1.0}) is None


def test_a_run_of_records_opens(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, UNITS)
    status = read_status(Folder(str(run)))
    assert (status.units, status.units_committed, status.planned, status.captioned) == (UNITS, UNITS, 512 * UNITS, 512 * UNITS)
    with open_run(str(run)) as database:
        assert database.fetch("SELECT sum(completed) AS n FROM commits").to_pylist() == [{"n": 512 * UNITS}]


def test_a_training_starts_on_features_of_records(tmp_path: Path) -> None:
    features = tmp_path / "features"
    write_features(features, UNITS)
    start_training(features)
    assert (features / INDEX_FILE).is_file()
