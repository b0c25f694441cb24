"""The training tab: curves of several trainings, their state, grids, the request to stop and the command that resumes."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from foundry.errors import UserError
from model.generation.image_files import save_png
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
    assert "Model FLOPs utilisation of the GPU, %" not in charts  # none was measured
    assert charts["Time spent waiting for data, %"][0].points[0] == (64, 25)
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
        "does not run on this machine; wrote last 1 min 15 s ago",
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
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "saves a checkpoint after its present step" in tab.stop("one/alignment")
    assert run.asked_to_stop() and "asked to stop" in tab.status()
    assert "no process of this machine trains here" in tab.stop("one/alignment")


def test_a_finished_training_says_so_and_is_not_asked_to_stop(tab: TrainingTab) -> None:
    folder = tab.trainings["one/alignment"]  # 3 steps of 64 images
    rung = {"resolution": 64, "images": 193, "batch_size": 64, "position_scale": None}
    (folder / "config.yaml").write_text(yaml.safe_dump({"ladder": [rung]}))
    assert "does not run" in status_row("one", folder)["state"]
    (folder / "config.yaml").write_text(yaml.safe_dump({"ladder": [rung | {"images": 129}]}))
    assert status_row("one", folder)["state"] == "finished"
    assert "has finished" in tab.stop("one/alignment") and not (folder / "STOP").exists()


@pytest.mark.parametrize(
    "line", ['{"images_seen": 5}', "[1]", '{"kind": "train"}', "not JSON", '{"kind": 3, "images_seen": 2}']
)
def test_damaged_metrics_are_named_in_their_row_and_the_other_training_is_shown(tab: TrainingTab, line: str) -> None:
    path = tab.trainings["one/alignment"] / "metrics.jsonl"
    path.write_text(line + "\n" + path.read_text())
    status, charts = tab.status(), tab.curves(list(tab.trainings))
    assert "metrics.jsonl" in status and "19,200" in status
    assert status.index(">training<") < status.index(">state<") < status.index(">left<")
    assert "one/alignment: " in charts and charts.count("<svg") > 5


def test_a_damaged_grid_says_so_in_its_place(tab: TrainingTab) -> None:
    path = tab.trainings["one/alignment"] / "samples" / "000000000128.png"
    path.write_bytes(path.read_bytes()[:60])
    assert "128.png cannot be read as an image" in tab.grid("one/alignment", 2)
    path.write_bytes(b"no image")
    assert "cannot be read as an image" in tab.grid("one/alignment", 2) and "<img" in tab.grid("one/alignment", 1)


def test_a_slider_at_its_end_follows_the_newest_grid_and_another_one_stays(tab: TrainingTab) -> None:
    from studio.training.tab import refreshed  # Gradio takes seconds to import: not where tests are only collected

    name = "one/alignment"
    *_, known = refreshed(tab, [name], name, 2, known=2)
    assert known == 2
    save_png(Image.new("RGB", (8, 8)), tab.trainings[name] / "samples" / "000000000192.png", {"texts": []})
    _, _, slider, grid, known = refreshed(tab, [name], name, 2, known=2)
    assert (slider.maximum, slider.value, known) == (3, 3, 3) and "192 images" in grid
    _, _, slider, grid, known = refreshed(tab, [name], name, 1, known=2)
    assert (slider.maximum, slider.value, known) == (3, 1, 3) and not isinstance(grid, str)


def test_the_command_of_the_last_start_is_shown_for_a_shell(tab: TrainingTab) -> None:
    folder = tab.trainings["one/alignment"]
    assert resume_command(folder) == "python -m trainer.fit --stage alignment --run_dir 'my runs'"
    assert "the folder in which the training was started" in tab.resume("one/alignment")
    start = {"argv": ["/bin/t2i", "--run_dir=my runs", "--stage", "all"], "directory": "/my work"}
    (folder / "starts.jsonl").write_text(json.dumps(start) + "\n")
    expected = "cd '/my work' && python -m trainer.fit --stage alignment '--run_dir=my runs'"
    assert resume_command(folder) == expected and "Run this:" in tab.resume("one/alignment")
    (folder / "starts.jsonl").write_text(json.dumps(start | {"argv": ["/ray/default_worker.py", "--node"]}) + "\n")
    with pytest.raises(UserError, match=r"started by default_worker\.py"):
        resume_command(folder)
    (folder / "starts.jsonl").unlink()
    with pytest.raises(UserError, match=r"starts\.jsonl has no start"):
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
