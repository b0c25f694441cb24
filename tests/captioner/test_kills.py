"""Whatever is killed in the middle, the same command ends in the same captions as an unbroken run."""

import shutil
import time
from collections.abc import Callable, Sized
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from foundry.storage.folder import Folder
from foundry.units.commits import committed_retries, committed_units, read_commits
from tests.captioner.conftest import caption, caption_plainly, run_arguments, save_pictures, start_captioner

pytestmark = pytest.mark.slow

NUM_IMAGES = 400
"""Images in units of 8."""


def digests(run: Path) -> list[tuple[int, str, str]]:
    return [
        (commit.unit, commit.files["captions"].sha256, commit.files["noun_counts"].sha256)
        for commit in read_commits(Folder(str(run)))
    ]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("images"), count=NUM_IMAGES)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, images: Path, tiny_llava: Path) -> list[tuple[int, str, str]]:
    run = tmp_path_factory.mktemp("unbroken")
    code, output = caption_plainly(run_arguments(images, run / "run", tiny_llava))
    assert code == 0, output
    return digests(run / "run")


def the_driver(driver: psutil.Process) -> list[psutil.Process]:
    return [driver]


def the_worker(driver: psutil.Process) -> list[psutil.Process]:
    return [child for child in driver.children(recursive=True) if "ray::Replica" in " ".join(child.cmdline())]


def all_of_ray(driver: psutil.Process) -> list[psutil.Process]:
    return [child for child in driver.children(recursive=True) if child.name() in ("raylet", "gcs_server")]


@pytest.mark.parametrize("victims", [the_driver, the_worker, all_of_ray])
def test_a_kill_in_the_middle_changes_nothing(
    *,
    victims: Callable[[psutil.Process], list[psutil.Process]],
    tmp_path: Path,
    images: Path,
    tiny_llava: Path,
    unbroken: list[tuple[int, str, str]],
) -> None:
    run = tmp_path / "run"
    arguments = run_arguments(images, run, tiny_llava)
    process = start_captioner(arguments)
    try:
        wait_for_commits(run, process.poll)
        targets = victims(psutil.Process(process.pid))
        assert targets, "there was nothing to kill"
        for target in targets:
            target.kill()
        output, _ = process.communicate(timeout=180)
    finally:
        process.kill()
    assert "Traceback" not in output, output
    if victims is all_of_ray:
        assert process.returncode == 2, output
        assert "error: Ray was lost (" in output and "run the same command again" in output, output
    interrupted = len(committed_units(Folder(str(run))))
    resume = caption if victims is the_driver else caption_plainly  # once as a user does; a plain loop is quicker
    code, output = resume(arguments)
    assert code == 0, output
    assert f"{NUM_IMAGES} planned = {NUM_IMAGES} captioned + 0 rejected" in output
    assert digests(run) == unbroken
    if victims is not the_worker:  # a run whose worker was killed continues by itself
        assert 0 < interrupted < len(unbroken), "the kill came too late to interrupt anything"


def test_a_retry_that_is_killed_in_the_middle_is_resumed_and_tries_each_image_once(
    tmp_path: Path, images: Path, tiny_llava: Path
) -> None:
    """Every other image is no image at first, and repaired before the retry."""
    broken, run = tmp_path / "images", tmp_path / "run"
    shutil.copytree(images, broken)
    keys = sorted(path.stem for path in broken.glob("*.jpg"))[::2]
    for key in keys:
        (broken / f"{key}.jpg").write_text("to be repaired")
    arguments = run_arguments(broken, run, tiny_llava, "--max_rejected", "1")
    code, output = caption_plainly(arguments)
    assert code == 0 and "200 captioned + 200 rejected (not_an_image 200)" in output, output
    for key in keys:
        shutil.copy(images / f"{key}.jpg", broken)
    process = start_captioner([*arguments, "--retry_rejected"])
    try:
        wait_for_commits(run, process.poll, committed=committed_retries)
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in children if child.name().startswith("ray::") and not child.name().endswith("Agent")]
        process.kill()
        process.communicate(timeout=60)
        deadline = time.monotonic() + 60
        while not all(map(has_ended, workers)):  # until then they commit what they have in hand
            assert time.monotonic() < deadline, "Ray's workers outlive the command"
            time.sleep(0.05)
    finally:
        process.kill()
    interrupted = len(committed_retries(Folder(str(run))))
    code, output = caption_plainly([*arguments, "--retry_rejected"])
    assert code == 0, output
    assert 0 < interrupted < 50, "the kill came too late to interrupt anything"
    assert f"{(50 - interrupted) * 4} rejected images in {50 - interrupted} units to try again" in output, output
    assert "400 planned = 400 captioned + 0 rejected" in output
    commits = read_commits(Folder(str(run)))
    assert {(commit.retry, sum(commit.retried.values())) for commit in commits} == {(1, 4)}
    found = {
        kind: [key for commit in commits for key in pq.read_table(run / commit.files[kind].path)["key"].to_pylist()]
        for kind in ("captions", "images", "retried")
    }
    assert sorted(found["captions"]) == sorted(found["images"]) == sorted(path.stem for path in images.glob("*.jpg"))
    assert sorted(found["retried"]) == keys


def has_ended(process: psutil.Process) -> bool:
    """Also of a process that nobody has waited for, since its parent was killed."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wait_for_commits(
    run: Path, poll: Callable[[], int | None], *, committed: Callable[[Folder], Sized] = committed_units
) -> None:
    deadline = time.monotonic() + 120
    while len(committed(Folder(str(run)))) < 3:
        assert time.monotonic() < deadline and poll() is None, "the run ended before it could be interrupted"
        time.sleep(0.02)
