"""The training tab: curves of several trainings, their state, grids, the request to stop and the command that resumes."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from foundry.errors import UserError
from studio.training.page import TrainingTab
from studio.training.runs import curves, is_running, read_metrics, resume_command, status_row, thinned, training_names
from tests.studio.world import write_training
from trainer.distributed import Workers
from trainer.monitoring.run_folder import RunFolder


@pytest.fixture
def tab(tmp_path: Path) -> TrainingTab:
    folders = [write_training(tmp_path / name / "alignment", rows=rows) for name, rows in (("one", 3), ("two", 300))]
    return TrainingTab(training_names(folders))


def test_trainings_of_one_stage_are_told_apart_by_the_folders_above(tab: TrainingTab) -> None:
    assert list(tab.trainings) == ["one/alignment", "two/alignment"]


def test_curves_overlay_trainings_by_figure_and_band(tab: TrainingTab) -> None:
    charts = curves(tab.trainings)
    assert list(charts)[:2] == ["Training loss", "Validation loss"]
    assert {"Validation loss, timesteps 0 to 500", "Validation loss, timesteps 500 to 1000", "Images per second"} <= set(charts)
    assert "Model FLOPs utilisation of the GPU" not in charts  # none was measured
    assert [line.training for line in charts["Training loss"]] == ["one/alignment", "two/alignment"]
    assert charts["Training loss"][0].points == [(64, 1.0), (128, 0.5), (192, pytest.approx(1 / 3))]
    assert charts["Validation loss, timesteps 500 to 1000"][1].points == [(19200, 0.25)]
    html = tab.curves(["one/alignment", "two/alignment"])
    assert html.count("<svg") == len(charts) and "two/alignment" in html
    assert "Choose a training" in tab.curves([])


def test_long_curves_are_means_of_neighbours_and_no_point_is_lost() -> None:
    points = [(float(x), float(x % 2)) for x in range(1000)]
    found = thinned(points, most=100)
    assert len(found) == 100 and {y for _, y in found} == {0.5}
    assert sum(x for x, _ in found) / 100 == sum(x for x, _ in points) / 1000
    assert thinned(points[:7], most=100) == points[:7] and thinned([]) == []


def test_the_table_has_the_newest_figures_and_says_who_runs(tab: TrainingTab, tmp_path: Path) -> None:
    folder = tab.trainings["two/alignment"]
    row = status_row("two", folder, now=os.stat(folder / "metrics.jsonl").st_mtime + 75)
    assert (row["state"], row["images seen"], row["data wait"], row["memory"], row["left"]) == (
        "wrote last 1 min 15 s ago",
        19200,
        "25.0%",
        "2.0 GB",
        "1 min 00 s",
    )
    with (folder / ".lock").open("w") as file:
        assert not is_running(folder)
        fcntl.flock(file, fcntl.LOCK_EX)
        assert is_running(folder) and "runs on this machine" in tab.status()


def test_metrics_are_read_again_when_they_grow(tab: TrainingTab) -> None:
    folder = tab.trainings["one/alignment"]
    before = len(read_metrics(folder))
    text = (folder / "metrics.jsonl").read_text().rpartition("\n")[0]
    (folder / "metrics.jsonl").write_text(f"{text}\n{json.dumps({'kind': 'train', 'images_seen': 999, 'loss': 0.1})}\n")
    assert len(read_metrics(folder)) == before + 1


def test_stopping_is_the_file_that_a_training_looks_for(tab: TrainingTab) -> None:
    folder = tab.trainings["one/alignment"]
    run = RunFolder(folder, Workers())
    assert not run.asked_to_stop()
    assert "saves a checkpoint" in tab.stop("one/alignment")
    assert run.asked_to_stop() and "asked to stop" in tab.status()


def test_the_command_of_the_last_start_is_shown_for_a_shell(tab: TrainingTab) -> None:
    folder = tab.trainings["one/alignment"]
    assert resume_command(folder) == "python -m trainer.fit --stage alignment --run_dir 'my runs'"
    assert "python -m trainer.fit" in tab.resume("one/alignment")
    (folder / "starts.jsonl").unlink()
    with pytest.raises(UserError, match=r"no starts\.jsonl"):
        resume_command(folder)


def test_grids_follow_the_slider_and_say_what_they_show(tab: TrainingTab) -> None:
    assert [grid.images_seen for grid in tab.grids("one/alignment")] == [64, 128]
    first, last = (tab.grid("one/alignment", position) for position in (1, 99))
    assert "64 images" in first and "/grids/0/000000000064.png" in first and "128 images" in last
    assert "&lt;b&gt;on&lt;/b&gt;" in first and "<b>on" not in first


@pytest.mark.parametrize("name", ["../metrics.jsonl", "metrics.jsonl", "..%2f..%2fetc%2fpasswd", "999.png", ""])
def test_no_other_file_is_a_grid(tab: TrainingTab, name: Any) -> None:
    assert tab.grid_file(0, name) is None
    assert tab.grid_file(5, "000000000064.png") is None
    assert tab.grid_file(1, "000000000064.png") is not None
