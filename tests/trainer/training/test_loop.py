"""A training resumes bit for bit after a kill, depends on nothing but its settings, and keeps its checkpoints whole."""

import errno
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from foundry.errors import UserError
from model.dit import DiT
from tests.trainer.tiny_training import (
    acting_after_step,
    continued_from,
    newest_of,
    newest_weights,
    run_until_killed,
    tiny_config,
    training_losses,
    write_store,
)
from trainer.config.data import DataConfig
from trainer.config.ladder import Rung
from trainer.config.network import ObjectiveConfig
from trainer.config.running import CheckpointConfig
from trainer.config.train import TrainConfig
from trainer.distributed import Workers
from trainer.features.store import FeatureStore
from trainer.fit import main
from trainer.monitoring import run_folder
from trainer.monitoring.run_folder import (
    LOG,
    STOP,
    RunFolder,
    list_checkpoints,
    newest_checkpoint,
    printed_log,
    read_metrics,
)
from trainer.training import checkpoints
from trainer.training.checkpoints import kept_checkpoints
from trainer.training.networks import network_around
from trainer.training.rung_parts import check_caption_weights

GOLDEN = [1.0890, 1.0397, 0.9672, 1.0166, 0.9950, 0.9480, 1.0586, 0.9276, 0.9875, 0.9230]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("features")
    write_store(root)
    return root


def _config(features: Path, run_dir: Path, **changes: Any) -> TrainConfig:
    return tiny_config(run_dir, features=str(features), **changes)


def _same(first: TrainConfig, second: TrainConfig) -> None:
    assert training_losses(first) == training_losses(second)
    ours, theirs = newest_weights(first), newest_weights(second)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def unbroken(features: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    config = _config(features, tmp_path_factory.mktemp("unbroken"))
    assert main(config) == 0
    return config


def test_losses_are_those_of_the_first_day(unbroken: TrainConfig) -> None:
    found = list(training_losses(unbroken).values())
    assert found == pytest.approx(GOLDEN, rel=2e-3)


def test_a_killed_training_resumes_bit_for_bit(features: Path, unbroken: TrainConfig, tmp_path: Path) -> None:
    config = _config(features, tmp_path)
    run_until_killed(config, "step 8 ")  # two steps after the second checkpoint, or while that is being written
    newest = newest_checkpoint(tmp_path / "runs" / "alignment")
    assert newest is not None and 12 <= int(newest.name) <= 36
    assert main(config) == 0
    _same(config, unbroken)
    starts = (tmp_path / "runs" / "alignment" / "starts.jsonl").read_text().splitlines()
    assert len(starts) == 2 and "resumes" in starts[1]


@pytest.mark.parametrize("threads", [0, 3])
def test_the_number_of_loader_threads_changes_nothing(
    features: Path, unbroken: TrainConfig, tmp_path: Path, threads: int
) -> None:
    config = _config(features, tmp_path, data=DataConfig(loader_threads=threads, prefetch=2))
    assert main(config) == 0
    _same(config, unbroken)


def test_checkpoints_and_validation_by_minutes_change_nothing(features: Path, unbroken: TrainConfig, tmp_path: Path) -> None:
    watch = replace(unbroken.watch, validate_every_images=None, validate_every_minutes=1e-9)
    always = CheckpointConfig(every_minutes=1e-9, keep_last=99)
    config = _config(features, tmp_path, checkpoint=always, watch=watch)
    assert main(config) == 0
    _same(config, unbroken)
    assert [int(path.name) for path in list_checkpoints(Path(config.run_folder))] == list(range(4, 44, 4))
    rows = [row for row in read_metrics(Path(config.run_folder)) if row["kind"] == "validation"]
    assert [row["images_seen"] for row in rows] == list(range(4, 44, 4))
    resumed = continued_from(config, tmp_path / "resumed", images_seen=20)
    assert main(resumed) == 0
    ours, theirs = newest_weights(resumed), newest_weights(unbroken)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_overall_speed_has_validation_and_checkpoints_in_it(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.training.rung.validate", lambda *_: time.sleep(0.3))
    config = _config(features, tmp_path, checkpoint=CheckpointConfig(every_images=1000))
    assert main(replace(config, watch=replace(config.watch, validate_every_images=4))) == 0
    rows = [row for row in read_metrics(Path(config.run_folder)) if row["kind"] == "train"]
    last = rows[-1]
    assert last["overall_images_per_s"] < 4 / 0.3 < last["images_per_s"]
    assert all(row["eta_s"] == pytest.approx((40 - row["images_seen"]) / row["overall_images_per_s"]) for row in rows)
    assert f"{last['overall_images_per_s']:.4g} overall" in (Path(config.run_folder) / LOG).read_text()


def test_a_file_stops_it_and_the_same_command_resumes(features: Path, unbroken: TrainConfig, tmp_path: Path) -> None:
    config = _config(features, tmp_path)
    run = Path(config.run_folder)
    with acting_after_step(run, 3, (run / STOP).touch):
        assert main(config) == 130
    assert len(training_losses(config)) == 3
    assert main(config) == 0
    _same(config, unbroken)
    assert main(config) == 0  # nothing is left to do


def test_sigterm_saves_and_ends(features: Path, unbroken: TrainConfig, tmp_path: Path) -> None:
    config = _config(features, tmp_path)
    with acting_after_step(Path(config.run_folder), 3, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert main(config) == 130
    assert int(newest_of(config).name) == max(training_losses(config)) == 12
    assert main(config) == 0
    _same(config, unbroken)


def test_the_thread_that_writes_makes_no_network(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the main thread loads a VAE, accelerate makes the new parameters of all threads empty."""
    makers: list[threading.Thread] = []

    def made(*arguments: Any) -> DiT:
        makers.append(threading.current_thread())
        return network_around(*arguments)

    monkeypatch.setattr(checkpoints, "network_around", made)
    assert main(_config(features, tmp_path)) == 0
    assert makers and set(makers) == {threading.main_thread()}


def test_a_full_disk_leaves_the_checkpoint_before(features: Path, unbroken: TrainConfig, tmp_path: Path) -> None:
    config = _config(features, tmp_path)
    assert main(replace(config, ladder=(Rung(resolution=16, images=24, batch_size=4),))) == 0
    before = list_checkpoints(Path(config.run_folder))
    with _largest_file(50_000), pytest.raises(UserError, match=rf"could not be written \(.*{before[-1]} is whole"):
        main(config)
    assert list_checkpoints(Path(config.run_folder)) == before
    assert [path.name for path in before[-1].parent.iterdir() if path.name.startswith(".")] == []
    assert main(config) == 0
    _same_weights_as(unbroken, config)


def test_weights_that_do_not_fit_on_the_disk_leave_nothing_behind(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("trainer.training.checkpoints.save_checkpoint", full)
    config = _config(features, tmp_path)
    with pytest.raises(UserError, match="could not be written .*No space left.*there is none before it"):
        main(config)
    assert list((Path(config.run_folder) / "checkpoints").iterdir()) == []


def test_a_run_folder_that_cannot_be_written_is_said_in_a_line(features: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where a folder is wanted")
    with pytest.raises(UserError, match=r"cannot work in .*runs/alignment \(NotADirectoryError"):
        main(_config(features, tmp_path))


def test_the_log_of_workers_is_printed_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / LOG).write_text("of an earlier start\n")
    with printed_log(tmp_path):
        RunFolder(tmp_path, Workers()).say("step 1")
    assert capsys.readouterr().out == "step 1\nstep 1\n"  # by who says it, and by who follows
    assert (tmp_path / LOG).read_text() == "of an earlier start\nstep 1\n"


def test_two_trainings_do_not_write_to_one_folder(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path, Workers()), RunFolder(tmp_path, Workers())
    with first.held(wait_s=0.0), pytest.raises(UserError, match="another training writes to"), second.held(wait_s=0.0):
        pass
    with second.held(wait_s=0.0), pytest.raises(UserError, match="another training writes to"), first.held(wait_s=0.0):
        pass


def test_a_training_that_waited_resumes_from_what_the_other_one_saved(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(features, tmp_path, images=8)
    assert main(config) == 0
    saved, hidden = Path(config.run_folder) / "checkpoints", tmp_path / "not saved yet"
    saved.rename(hidden)

    def lock_of_another(file: int) -> bool:
        if hidden.exists():  # the other one holds the folder, and saves
            hidden.rename(saved)
            return False
        return locked(file)

    locked = run_folder._locked
    monkeypatch.setattr(run_folder, "_locked", lock_of_another)
    assert main(replace(config, ladder=(Rung(resolution=16, images=12, batch_size=4),))) == 0
    starts = (Path(config.run_folder) / "starts.jsonl").read_text().splitlines()
    assert len(starts) == 2 and "resumes" in starts[1]


def test_the_last_and_every_nth_checkpoint_stay() -> None:
    config = CheckpointConfig(keep_last=2, keep_every_images=100)
    assert kept_checkpoints([40, 80, 120, 160, 200, 240, 280], config) == {120, 200, 240, 280}
    assert kept_checkpoints([40, 80, 120], CheckpointConfig(keep_last=1)) == {120}


def test_settings_that_would_change_the_past_are_refused(features: Path, tmp_path: Path) -> None:
    config = _config(features, tmp_path, images=12)
    assert main(config) == 0
    longer = replace(config, ladder=(Rung(resolution=16, images=20, batch_size=4),))
    for change, words in [
        ({"seed": 1}, "seed 0 then, 1 now"),
        ({"ladder": (Rung(resolution=16, images=21, batch_size=3),)}, "batch size"),
        ({"objective": ObjectiveConfig(settings={"beta_end": 0.03})}, "settings of the objective"),
    ]:
        with pytest.raises(UserError, match=words):
            main(replace(longer, **change))  # type: ignore[arg-type]
    assert main(longer) == 0


def test_features_that_grew_are_said_to_change_the_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "features")
    config = tiny_config(tmp_path, images=24)
    assert main(replace(config, ladder=(Rung(resolution=16, images=12, batch_size=4),))) == 0
    write_store(tmp_path / "features", num_units=6)
    assert main(config) == 0
    assert (
        "are not those of the checkpoint (more features, or another data.skip or data.weights): from here on their order is"
        in capsys.readouterr().out
    )


def test_weights_of_captions_that_there_are_not_are_refused(features: Path, tmp_path: Path) -> None:
    config = _config(features, tmp_path, data=DataConfig(caption_weights={"dens": 1.0}))
    with pytest.raises(UserError, match=r"no caption in .* has a weight: they are alt_text, dense"):
        main(config)


def test_captions_of_any_bucket_can_have_the_weight(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FeatureStore, "caption_names", lambda _store, unit, _row: ("dense",) if unit else ("alt_text",))
    check_caption_weights({"dense": 1.0}, FeatureStore.open(str(features / "alignment" / "16")))


@contextmanager
def _largest_file(num_bytes: int) -> Iterator[None]:
    """Writes beyond this size fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _same_weights_as(first: TrainConfig, second: TrainConfig) -> None:
    ours, theirs = newest_weights(first), newest_weights(second)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
