"""The synthetic run is a run: its record and its commits are read by whatever reads the captioner's."""

from pathlib import Path

from benchmarks.synthetic_run import SyntheticRun, write_run
from foundry.storage.folder import Folder
from foundry.storage.run_record import RunRecord, run_id
from foundry.units.commits import read_commits


def test_the_record_is_that_of_the_commits(tmp_path: Path) -> None:
    write_run(tmp_path / "run", SyntheticRun(num_captions=10, num_units=3, num_nouns=20))
    folder = Folder(str(tmp_path / "run"))
    record = RunRecord.read(folder)
    assert record is not None and record.run_id == run_id(record.settings) and record.settings["unit_size"] == 4
    commits = read_commits(folder)
    assert {commit.run_id for commit in commits} == {record.run_id}
    assert sum(commit.completed for commit in commits) == 10
