"""Rejected images that are tried again: every reader of the run counts each image once, and what it counts is true."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from captioner import status
from captioner.config import CaptionConfig
from captioner.run import main
from dataset_builder import report
from dataset_builder.dataset.recipe import BuildConfig
from dataset_builder.score import main as score
from dataset_builder.scores.config import ScoreConfig
from dataset_builder.sql.run_files import open_run
from foundry.command_line import run_command
from foundry.units.commits import Unit
from tests.captioner.conftest import run_arguments, save_pictures
from tests.dataset_builder.dataset.built import ask, built, check_that_the_funnel_adds_up
from tests.foundry.units.plain_loop import run_plainly

NUM_IMAGES = 10
BROKEN = ("picture-0-0003", "picture-0-0009")
"""One in each of the two units."""
PIXELS = "SELECT key, prompt, caption, num_nouns FROM captions ORDER BY key"


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foundry.units.run.run_job", run_plainly)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("pictures") / "images", count=NUM_IMAGES)


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory, tiny_llava: Path) -> Path:
    """The run that rejects nothing."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("foundry.units.run.run_job", run_plainly)
        assert caption(pictures, run, tiny_llava) == 0
    return run


@pytest.fixture
def images(pictures: Path, tmp_path: Path) -> Path:
    """The pictures, two of which are no images yet."""
    shutil.copytree(pictures, tmp_path / "images")
    for key in BROKEN:
        (tmp_path / "images" / f"{key}.jpg").write_text("to be repaired")
    return tmp_path / "images"


def caption(images: Path, run: Path, model: Path, *more: str) -> int:
    arguments = run_arguments(images, run, model, "--generation.dtype", "float32", *more)
    return run_command(CaptionConfig, main, prog="python -m captioner.run", example="", argv=arguments)


def repair(images: Path, pictures: Path, *keys: str) -> None:
    for key in keys:
        shutil.copy(pictures / f"{key}.jpg", images / f"{key}.jpg")


def rows(run: Path, sql: str) -> list[dict[str, Any]]:
    with open_run(str(run)) as database:
        found: list[dict[str, Any]] = database.fetch(sql).to_pylist()
    return found


def check_that_all_readers_agree(run: Path, capsys: pytest.CaptureFixture[str], *, rejected: Sequence[str]) -> None:
    counts = {"planned": NUM_IMAGES, "captioned": NUM_IMAGES - len(rejected), "rejected": len(rejected)}
    capsys.readouterr()
    assert status.main(status.StatusConfig(run=str(run), json=True)) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: found[name] for name in counts} == counts and found["to_retry"] == 0
    sums = "sum(planned)::INT AS planned, sum(completed)::INT AS captioned, sum(num_rejected)::INT AS rejected"
    assert rows(run, f"SELECT {sums} FROM commits") == [counts]
    assert [row["key"] for row in rows(run, "SELECT key FROM rejected ORDER BY key")] == sorted(rejected)
    once = "SELECT count(*) AS n, count(DISTINCT key) AS keys FROM"
    for view in ("images", "captions"):
        assert rows(run, f"{once} {view}") == [{"n": counts["captioned"], "keys": counts["captioned"]}]
    nouns = "SELECT noun, count(*) AS n FROM nouns GROUP BY ALL ORDER BY ALL"
    assert rows(run, "SELECT noun, count AS n FROM noun_counts ORDER BY ALL") == rows(run, nouns)


def test_a_repaired_image_is_captioned_as_if_it_had_never_been_rejected(
    *, images: Path, pictures: Path, whole: Path, tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert caption(images, run, tiny_llava) == 0
    check_that_all_readers_agree(run, capsys, rejected=BROKEN)
    repair(images, pictures, BROKEN[0])
    assert caption(images, run, tiny_llava, "--retry_rejected") == 0
    said = capsys.readouterr().out
    assert "retry 1: 2 rejected images in 2 units to try again" in said
    assert "10 planned = 9 captioned + 1 rejected (not_an_image 1); 2 of 2 units" in said
    check_that_all_readers_agree(run, capsys, rejected=BROKEN[1:])
    repair(images, pictures, BROKEN[1])
    assert caption(images, run, tiny_llava, "--retry_rejected", "not_an_image", "broken") == 0
    assert "retry 2: 1 rejected image for broken, not_an_image in 1 unit to try again" in capsys.readouterr().out
    check_that_all_readers_agree(run, capsys, rejected=[])
    assert rows(run, PIXELS) == rows(whole, PIXELS)
    history = "SELECT key, reason, retry FROM retried ORDER BY key, retry"
    assert [tuple(row.values()) for row in rows(run, history)] == [
        (BROKEN[0], "not_an_image", 1),
        (BROKEN[1], "not_an_image", 1),
        (BROKEN[1], "not_an_image", 2),
    ]
    assert rows(run, "SELECT unit, retry FROM commits") == [{"unit": 0, "retry": 1}, {"unit": 1, "retry": 2}]
    assert caption(images, run, tiny_llava, "--retry_rejected") == 0
    assert "nothing to retry: no image is rejected\n" in capsys.readouterr().out


def test_a_report_a_data_set_and_scores_see_the_run_as_it_is_after_a_retry(
    *, images: Path, pictures: Path, tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert caption(images, run, tiny_llava) == 0
    assert score(ScoreConfig(source=str(run), clip="none")) == 0
    repair(images, pictures, BROKEN[0])
    assert caption(images, run, tiny_llava, "--retry_rejected") == 0
    capsys.readouterr()
    assert score(ScoreConfig(source=str(run), clip="none")) == 0
    said = capsys.readouterr().out
    assert "9 images, 1 of 2 units to do" in said and "9 images = 9 scored + 0 rejected" in said
    assert rows(run, "SELECT count(*) AS n, count(DISTINCT key) AS keys FROM scores") == [{"n": 9, "keys": 9}]
    with built(BuildConfig(captions=(str(run),), out=str(tmp_path / "data"))) as database:
        check_that_the_funnel_adds_up(database, planned=NUM_IMAGES)
        assert ask(database, "SELECT count(*), count(DISTINCT key), count(sharpness) FROM samples") == [(9, 9, 9)]
    assert report.main(report.ReportConfig(source=str(run), out=str(tmp_path / "report.html"))) == 0
    assert "not_an_image" in (tmp_path / "report.html").read_text()


def test_units_that_are_still_open_are_done_too_and_are_not_part_of_the_retry(
    images: Path, tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert caption(images, run, tiny_llava, "--limit", "8") == 0
    assert caption(images, run, tiny_llava, "--retry_rejected") == 0
    said = capsys.readouterr().out
    assert "1 unit to do" in said and "retry 1: 1 rejected image in 1 unit to try again" in said
    check_that_all_readers_agree(run, capsys, rejected=BROKEN)
    assert [row["key"] for row in rows(run, "SELECT key FROM retried")] == [BROKEN[0]]


def test_an_image_that_is_rejected_again_counts_once_in_the_budget(
    *, images: Path, tiny_llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, budgets = tmp_path / "run", []

    def remember(job: Any, units: Sequence[Unit], *, budget: int, **_: Any) -> bool:
        budgets.append(budget)
        return run_plainly(job, units)

    monkeypatch.setattr("foundry.units.run.run_job", remember)
    assert caption(images, run, tiny_llava, "--max_rejected", "0.2") == 0
    assert caption(images, run, tiny_llava, "--max_rejected", "0.2", "--retry_rejected") == 0
    assert caption(images, run, tiny_llava, "--max_rejected", "0.1", "--retry_rejected") == 1
    assert budgets == [2, 2, 1]
    assert "2 images are rejected, max_rejected allows 1" in capsys.readouterr().err
    check_that_all_readers_agree(run, capsys, rejected=BROKEN)


def test_what_a_stopped_retry_left_is_in_the_status_and_reasons_have_to_be_known(
    *, images: Path, tiny_llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert caption(images, run, tiny_llava) == 0
    monkeypatch.setattr("foundry.units.run.run_job", lambda job, units, **_: not run_plainly(job, units[:1]))
    assert caption(images, run, tiny_llava, "--retry_rejected") == 1
    capsys.readouterr()
    assert status.main(status.StatusConfig(run=str(run))) == 0
    assert "8 captioned + 2 rejected (not_an_image 2); 2 of 2 units; 1 rejected image to retry" in capsys.readouterr().out
    assert caption(images, run, tiny_llava, "--retry_rejected", "broken") == 2
    assert "retry 1 of all reasons is not finished, 1 image still to try" in capsys.readouterr().err
    assert caption(images, run, tiny_llava, "--retry_rejected", "brocken") == 2
    error = capsys.readouterr().err
    assert "retry_rejected: no image is rejected for brocken, the reasons are unreadable, empty," in error
    assert "no_class_label" not in error, "captioning never gives it"
