"""Trackers: each row once, also after kills; and no tracker that fails is felt by the training."""

import importlib.util
import io
import json
import shutil
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foundry.errors import UserError
from tests.trainer.tiny_training import tiny_config, write_store
from trainer.config.running import TRACKERS, WatchConfig
from trainer.distributed import Workers
from trainer.fit import main
from trainer.monitoring.run_folder import METRICS, RunFolder, read_metrics
from trainer.monitoring.tracking import following, process
from trainer.monitoring.tracking.clients import CLIENTS, TrackedRun
from trainer.monitoring.tracking.rows import TrackedRow, TrackerState

KEY = "a-secret-key-of-wandb"


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the stand-in for wandb, in this test's processes, writes what it gets."""
    packages = tmp_path / "packages"
    packages.mkdir()
    shutil.copy(Path(__file__).with_name("recording_wandb.py"), packages / "wandb.py")
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.setenv("PYTHONPATH", str(packages))
    monkeypatch.setenv("RECORDED", str(tmp_path / "recorded.jsonl"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(process, "END_S", 30.0)
    return tmp_path / "recorded.jsonl"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run's folder with three rows and a grid of samples."""
    folder = RunFolder(tmp_path / "runs" / "alignment", Workers())
    (folder.path / "samples").mkdir(parents=True)
    (folder.path / "config.yaml").write_text("stage: alignment\noptim: {lr: 0.001}\n")
    (folder.path / "starts.jsonl").write_text('{"images_seen": 0, "device": "cpu", "argv": ["fit"]}\n')
    for row in (
        {"kind": "train", "images_seen": 4},
        {"kind": "train", "images_seen": 8},
        {"kind": "validation", "images_seen": 8},
    ):
        folder.add_metrics({**row, "loss": 0.5, "mfu": None, "bands": [0.25, None]})
    Image.new("RGB", (8, 8)).save(folder.path / "samples" / "000000000008.png")
    return folder


def records(path: Path, what: str) -> list[Any]:
    return [row[what] for row in map(json.loads, path.read_text().splitlines()) if what in row]


def test_a_training_and_its_resume_are_one_run_with_each_row_once(
    tmp_path: Path, recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process, "END_S", 60.0)
    write_store(tmp_path / "features")
    watch = WatchConfig(every_steps=1, validate_every_images=20, validation_images=8, sample_every_images=0, tracker="wandb")
    config = tiny_config(tmp_path, images=24, watch=watch)
    assert main(config) == 0
    state = TrackerState(Path(config.run_folder), "wandb")
    state.add("train 28")  # handed over when a kill came: the tracker never had it
    longer = replace(config, ladder=(replace(config.ladder[0], images=40),))
    assert main(longer) == 0
    wanted = Counter((row["kind"], row["images_seen"]) for row in read_metrics(Path(config.run_folder)))
    got = Counter(
        (next(iter(set(row) - {"images_seen"})).split("/")[0], row["images_seen"]) for row in records(recorded, "row")
    )
    assert got == wanted and max(got.values()) == 1
    first, second = records(recorded, "init")
    assert first["id"] == second["id"] and first["name"] == "runs/alignment" and first["project"] == "t2i-foundry"
    settings = records(recorded, "config")[0]["settings"]
    assert settings["optim"]["lr"] == config.optim.lr and settings["watch"]["tracker"] == "wandb"
    assert [facts["start"]["images_seen"] for facts in records(recorded, "facts")] == [0, 24]
    written = "".join(path.read_text() for path in Path(config.run_folder).glob("*.*") if path.is_file())
    assert KEY not in written + recorded.read_text() + capsys.readouterr().out


def test_an_offline_folder_that_a_kill_cut_off_is_set_aside_and_sent_again(
    run: RunFolder, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B writes offline records in blocks: only a folder that was closed has all of them."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    with process.tracked(run, WatchConfig(tracker="wandb"), is_first=True):
        pass
    folder = run.path / "trackers" / "wandb"
    TrackerState(run.path, "wandb").keep(unfinished=str(folder / "offline-run-0"), settled=0)
    with process.tracked(run, WatchConfig(tracker="wandb"), is_first=True):
        pass
    assert sorted(path.name for path in folder.iterdir()) == ["incomplete-offline-run-0", "offline-run-1"]
    with process.tracked(run, WatchConfig(tracker="wandb"), is_first=True):
        pass
    keys = [row["images_seen"] for row in records(recorded, "row")]
    assert len(keys) == 8, "all four rows twice: the first folder is not synchronised; none a third time"
    image = records(recorded, "row")[3]
    assert image == {"images_seen": 8, "samples": str(run.path / "samples" / "000000000008.png")}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raises", "warning: wandb fails (ConnectionError: no answer to *** at https://***@host): training continues"),
        ("hangs", "warning: wandb has not taken all rows within 2 s: the same training command sends the rest"),
        ("dies", "warning: the process of the tracker wandb ended (exit code 3): training continues"),
    ],
)
def test_a_tracker_that_fails_is_one_warning(
    run: RunFolder, recorded: Path, monkeypatch: pytest.MonkeyPatch, *, fault: str, said: str
) -> None:
    monkeypatch.setattr(process, "END_S", 2.0)
    monkeypatch.setattr(process, "GRACE_S", 1.0)
    with monkeypatch.context() as faulty:
        faulty.setenv("RECORDED_FAULT", fault)
        with process.tracked(run, WatchConfig(tracker="wandb"), is_first=True):
            wait_for(lambda: fault == "hangs" or "warning" in log(run), run)
    waits = "training is done; waiting up to 2 s for wandb to store the last rows"
    assert (waits in log(run)) == (fault == "hangs")
    lines = [line for line in log(run).splitlines() if line.startswith("warning")]
    assert lines[0].startswith(said) and KEY not in log(run)
    monkeypatch.setattr(process, "END_S", 30.0)
    with process.tracked(run, WatchConfig(tracker="wandb"), is_first=True):
        pass
    assert len(records(recorded, "row")) == 4, "the next start sends what it lacks"


def test_a_missing_package_is_said_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = tiny_config(tmp_path, watch=WatchConfig(tracker="trackio,mlflow"))
    with pytest.raises(UserError, match=r"this needs trackio, mlflow: pip install trackio mlflow"):
        main(config)
    assert not (tmp_path / "runs").exists()


def test_trackers_are_named_among_those_that_there_are(tmp_path: Path) -> None:
    assert set(CLIENTS) == set(TRACKERS)
    with pytest.raises(ValueError, match=r"watch.tracker must be names among wandb, trackio, mlflow, tensorboard"):
        tiny_config(tmp_path, watch=WatchConfig(tracker="wandb,wandbb"))


class _Recording:
    """A client that fails as told, and keeps what it has over its restarts."""

    where = "here"

    def __init__(self, has: list[str], fails_at: set[int]) -> None:
        self.has, self.fails_at = has, fails_at

    def held(self, sent: int) -> int:
        return len(self.has)

    def log(self, row: TrackedRow, index: int) -> None:
        assert index == len(self.has)
        if index in self.fails_at:
            self.fails_at.discard(index)
            raise ConnectionResetError("gone")
        self.has.append(row.key)

    def finish(self) -> None:
        pass


def test_a_tracker_that_recovers_has_each_row_once(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    has: list[str] = []
    fails_at, answers = {0, 2}, io.StringIO()

    def client(run: TrackedRun, state: TrackerState) -> _Recording:
        return _Recording(has, fails_at)

    monkeypatch.setitem(CLIENTS, "wandb", client)
    monkeypatch.setattr(following, "POLL_S", 0.01)
    monkeypatch.setattr(following, "RETRY_S", (0.01,))
    ends = threading.Event()
    follower = following.Follower(run.path, "wandb", project=None, answers=answers)
    thread = threading.Thread(target=follower.follow, args=(ends,))
    thread.start()
    wait_for(lambda: len(has) == 4, run)
    run.add_metrics({"kind": "train", "images_seen": 12, "loss": 0.5})
    wait_for(lambda: len(has) == 5, run)
    ends.set()
    thread.join()
    assert has == ["train 4", "train 8", "validation 8", "samples 8", "train 12"]
    assert answers.getvalue().count("warning") == 1


def test_a_tracker_that_does_not_open_the_run_is_said(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    opens, ends, answers = threading.Event(), threading.Event(), io.StringIO()

    def client(run: TrackedRun, state: TrackerState) -> _Recording:
        opens.wait(60)
        return _Recording([], set())

    monkeypatch.setitem(CLIENTS, "wandb", client)
    monkeypatch.setattr(following, "POLL_S", 0.01)
    monkeypatch.setattr(following, "OPEN_S", 0.1)
    follower = following.Follower(run.path, "wandb", project=None, answers=answers)
    thread = threading.Thread(target=follower.follow, args=(ends,))
    thread.start()
    wait_for(lambda: "warning: wandb has not opened the run for 0 s: training continues" in answers.getvalue(), run)
    opens.set()
    wait_for(lambda: "rows are there" in answers.getvalue(), run)
    ends.set()
    thread.join()
    assert answers.getvalue().count("has not opened") == 1


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trackers' own packages work offline, in this test's folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setattr(process, "END_S", 60.0)
    return tmp_path


@pytest.mark.parametrize("name", ["tensorboard", *(pytest.param(name, marks=pytest.mark.slow) for name in TRACKERS[:3])])
def test_the_packages_themselves_take_each_row_once(run: RunFolder, stores: Path, name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is no part of the locked environment: pip install it to run this test")
    for _ in range(2):
        with process.tracked(run, WatchConfig(tracker=name), is_first=True):
            pass
    assert "warning" not in log(run)
    _, last = (line for line in log(run).splitlines() if f"{name}: " in line)
    assert f"{0 if name == 'tensorboard' else 4} rows are there" in last


def test_events_hold_the_rows_and_the_grid(run: RunFolder, stores: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with process.tracked(run, WatchConfig(tracker="tensorboard"), is_first=True):
        pass
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [4, 8]
    assert sorted(events.Tags()["scalars"]) == [
        "train/loss",
        "train/loss_of_band_0",
        "validation/loss",
        "validation/loss_of_band_0",
    ]
    assert events.Tags()["images"] == ["samples"]
    assert (run.path / METRICS).is_file()


def wait_for(condition: Any, run: RunFolder) -> None:
    """Waits until the condition holds; fails after half a minute."""
    for _ in range(300):
        if condition():
            return
        threading.Event().wait(0.1)
    raise AssertionError(log(run))


def log(run: RunFolder) -> str:
    """The run's log, empty before its first line."""
    path = run.path / "log.txt"
    return path.read_text() if path.exists() else ""
