"""Training says how often it will see its images, and warns once of too many passes and of more than a week."""

import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.trainer.tiny_training import acting_after_step, tiny_config, write_store
from tests.trainer.two_workers import train_together
from trainer.config.ladder import LadderPosition, Rung
from trainer.config.running import WatchConfig
from trainer.config.train import TrainConfig
from trainer.data.passes import TrainingWarning
from trainer.distributed import Workers
from trainer.fit import main
from trainer.monitoring.forecast import (
    FIRST_STEPS,
    LONGEST_S,
    WARM_UP_STEPS,
    StepTimer,
    duration_warning,
)
from trainer.monitoring.run_folder import LOG, STOP, RunFolder

NUM_SAMPLES = 12
"""Training samples of write_store's default store."""
WEEKS = 40_000_000_000
"""Images that the tiny network needs more than a week for, on any machine."""
QUIET = WatchConfig(every_steps=5, validate_every_images=0, sample_every_images=0)


class _Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _timed(timer: StepTimer, clock: _Clock, seconds: float) -> float | None:
    with timer.step():
        clock.now += seconds
    clock.now += 1000.0  # a validation, samples, a checkpoint
    return timer.step_s()


def test_the_speed_is_that_of_the_steps_after_the_warm_up_without_what_lies_between() -> None:
    clock = _Clock()
    timer = StepTimer(clock=clock)
    early = [_timed(timer, clock, 60.0) for _ in range(WARM_UP_STEPS)]
    compiled = [_timed(timer, clock, 45.0) for _ in range(3)]  # other buckets' shapes
    usual = [_timed(timer, clock, 2.0) for _ in range(FIRST_STEPS - WARM_UP_STEPS - 3)]
    assert {*early, *compiled, *usual[:-1]} == {None} and usual[-1] == 2.0
    assert timer.done and _timed(timer, clock, 2.0) is None


def test_a_step_ends_when_the_device_has_done_its_work() -> None:
    clock = _Clock()

    def wait() -> None:
        clock.now += 3.0

    timer = StepTimer(wait_for_device=wait, clock=clock)
    found = [_timed(timer, clock, 0.5) for _ in range(FIRST_STEPS)]
    assert found[-1] == 3.5


def test_steps_of_another_resolution_do_not_count() -> None:
    clock = _Clock()
    timer = StepTimer(clock=clock)
    assert not any(_timed(timer, clock, 9.0) for _ in range(FIRST_STEPS - 1))
    timer.begin_rung()
    assert [_timed(timer, clock, 1.0) for _ in range(FIRST_STEPS)][-1] == 1.0


def test_a_week_is_the_most_without_a_warning_and_later_resolutions_take_as_much_longer_as_they_are_more_work() -> None:
    ladder = tuple(Rung(resolution=side, images=1000, batch_size=10) for side in (16, 32, 64))
    config = tiny_config(Path(), ladder=ladder)
    position = LadderPosition(index=1, rung=ladder[1], images_before=1000)
    left = 400 + 4 * 1000  # of the present resolution; an image of the last one is four times as much work

    def warning(step_s: float) -> TrainingWarning | None:
        return duration_warning(
            config,
            position,
            images_seen=1600,
            step_s=step_s,
            work=lambda rung: float(rung.resolution**2),
            num_workers=2,
            device="cuda",
        )

    assert warning(0.999 * LONGEST_S * 10 / left) is None
    longer = warning(1.5 * LONGEST_S * 10 / left)
    assert longer is not None and longer.fact == "alignment takes more than a week for 3,000 images with 2 workers on cuda"
    assert longer.advice.startswith(
        "10.5 days are left at 0.00485 images/s, the median of steps 11 to 50 after the start; lower"
    )


def test_a_run_warns_once_of_one_fact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = TrainingWarning("a takes long", "8 days are left"), TrainingWarning("a takes longer", "9 days are left")
    for workers in (Workers(), Workers(rank=1, num=2), Workers()):
        run = RunFolder(tmp_path, workers)
        run.warn_once(first)
        run.warn_once(TrainingWarning(first.fact, "7 days are left"))
        run.warn_once(None)
    RunFolder(tmp_path, Workers()).warn_once(second)
    expected = "warning: a takes long: 8 days are left\nwarning: a takes longer: 9 days are left\n"
    assert capsys.readouterr().out == (tmp_path / LOG).read_text() == expected


def test_the_first_lines_say_how_often_each_image_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "features")
    assert main(tiny_config(tmp_path, images=4 * NUM_SAMPLES, watch=QUIET)) == 0
    output = capsys.readouterr().out
    assert "from 12 samples in 2 buckets of" in output and ": each is seen 4 times" in output
    assert "warning" not in output


def test_all_resolutions_of_a_stage_add_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "features")
    ladder = tuple(Rung(resolution=side, images=40 * NUM_SAMPLES, batch_size=4) for side in (16, 32))
    config = tiny_config(tmp_path, ladder=ladder, watch=QUIET)
    with _stopped_at(config, 5):
        assert main(config) == 130
    assert capsys.readouterr().out.count("warning: alignment sees each of its 12 images 80 times: above 50 times") == 1
    write_store(tmp_path / "features", resolution=32, num_units=12)  # 60 samples: the stage makes 40 passes and 8
    other = tiny_config(tmp_path, ladder=ladder, watch=QUIET, run_dir=str(tmp_path / "other"))
    with _stopped_at(other, 5):
        assert main(other) == 130
    assert "warning" not in capsys.readouterr().out


def test_a_long_training_says_so_once_also_when_it_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "features")
    config = tiny_config(tmp_path, images=WEEKS, watch=QUIET)
    for _ in range(2):
        before = _steps(config)
        with _stopped_at(config, before + FIRST_STEPS + 10):
            assert main(config) == 130
        assert _steps(config) > before + FIRST_STEPS
    _assert_both_warnings(config, capsys.readouterr().out, num_workers="1 worker")


@pytest.mark.slow
def test_two_workers_warn_once(tmp_path: Path) -> None:
    write_store(tmp_path / "features")
    config = tiny_config(tmp_path, images=WEEKS, watch=QUIET)
    stopper = threading.Thread(target=_stop_when_logged, args=(config, f"step {FIRST_STEPS + 10} "), daemon=True)
    stopper.start()
    train_together(config, code=130, said=tmp_path / "said")
    stopper.join()
    _assert_both_warnings(config, (tmp_path / "said").read_text(), num_workers="2 workers")


def _stop_when_logged(config: TrainConfig, words: str) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and words not in _log(config):
        time.sleep(0.05)
    (Path(config.run_folder) / STOP).touch()


def _assert_both_warnings(config: TrainConfig, output: str, *, num_workers: str) -> None:
    for text in (output, _log(config)):
        passes, duration = (line for line in text.splitlines() if line.startswith("warning"))
        assert passes.startswith("warning: alignment sees each of its 12 images 3,333,333,333 times: ")
        assert duration.startswith(
            f"warning: alignment takes more than a week for {WEEKS:,} images with {num_workers} on cpu: "
        )
        assert "the median of steps 11 to 50 after the start" in duration


def _log(config: TrainConfig) -> str:
    path = Path(config.run_folder) / LOG
    return path.read_text() if path.exists() else ""


def _steps(config: TrainConfig) -> int:
    """The step of the last line of the log that has one."""
    return max((int(line.split("  step ")[1].split()[0]) for line in _log(config).splitlines() if "  step " in line), default=0)


def _stopped_at(config: TrainConfig, step: int) -> AbstractContextManager[None]:
    """Stops the training inside after a step."""
    run = Path(config.run_folder)
    return acting_after_step(run, step, (run / STOP).touch)
