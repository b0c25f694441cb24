"""On Ray Train: a worker that dies is replaced, and the training resumes from the last checkpoint as if it had not.

SIGTERM saves there too, and what starting again would not mend ends the training at once.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from foundry.errors import UserError
from tests.trainer.tiny_sources import tiny_precompute, write_class_folders
from tests.trainer.tiny_training import tiny_config, write_store
from trainer.config.running import DistributedConfig
from trainer.config.train import TrainConfig
from trainer.features.job import Encoders
from trainer.features.preparation import prepare, run_tasks
from trainer.fit import main
from trainer.monitoring.run_folder import list_checkpoints, read_metrics

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def own_ray() -> Iterator[None]:
    """One for all: the first training starts it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[3]))
        patch.delenv("RAY_ADDRESS", raising=False)
        yield
    ray.shutdown()


def _losses(config: TrainConfig) -> dict[int, float]:
    return {row["images_seen"]: row["loss"] for row in read_metrics(Path(config.run_folder)) if row["kind"] == "train"}


@pytest.mark.timeout(600)
def test_a_lost_worker_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # relative paths lead to the same from the workers, which Ray starts in another folder
    write_store(Path("features"))
    config = tiny_config(Path(), images=48, num_workers=2, distributed=DistributedConfig(sharding="fsdp"))
    alone = replace(config, run_dir="alone", num_workers=1)
    assert main(alone) == 0
    killer = threading.Thread(target=_kill_a_worker_after_a_checkpoint, args=(config,), daemon=True)
    killer.start()
    assert main(config) == 0
    killer.join(timeout=1)
    starts = (Path(config.run_folder) / "starts.jsonl").read_text().splitlines()
    assert len(starts) == 2 and "resumes" in starts[1]
    assert _losses(config) == pytest.approx(_losses(alone), rel=1e-4)
    with pytest.raises(UserError, match="batch of 4 images cannot be shared by 3 workers"):
        main(replace(config, num_workers=3))
    with pytest.raises(UserError, match="cuda for 2 workers: this Ray has no GPU"):
        main(replace(config, device="cuda"))


@pytest.mark.timeout(600)
def test_sigterm_to_the_command_saves_and_ends(tmp_path: Path) -> None:
    write_store(tmp_path / "features")
    config = tiny_config(tmp_path, images=4000, num_workers=2)
    with _sigterm_after_a_checkpoint(config):
        assert main(config) == 130
    newest = list_checkpoints(Path(config.run_folder))[-1]
    assert int(newest.name) == max(_losses(config)) < 4000
    assert _starts(config) == 1


@pytest.mark.timeout(600)
def test_what_a_new_start_would_not_mend_ends_it_at_once(tmp_path: Path) -> None:
    """A damaged file, which one worker comes to while the other one waits for it."""
    folder = write_store(tmp_path / "features")
    for path in (folder / "latents").iterdir():
        if b"u0r0" in path.read_bytes():
            path.write_bytes(b"ARROW1, and then nothing")
    config = tiny_config(tmp_path, num_workers=2)
    with pytest.raises(UserError, match=r"^\S+features/alignment/16, unit 0: [^\n]*; delete commits/00000000.json and run"):
        main(config)
    assert _starts(config) == 1


@pytest.mark.timeout(600)
def test_stores_that_a_node_does_not_see_are_named_before_the_work(tmp_path: Path) -> None:
    config = tiny_precompute(tmp_path, write_class_folders(tmp_path / "classes"), stage="pixel")
    prepared = prepare(config, describe=Encoders.describe)
    elsewhere = replace(prepared, job=replace(prepared.job, stores={32: str(tmp_path / "elsewhere")}))
    with pytest.raises(UserError, match=r"elsewhere/features\.json: not visible on node"):
        run_tasks(config, elsewhere, started=0.0)


def _starts(config: TrainConfig) -> int:
    return len((Path(config.run_folder) / "starts.jsonl").read_text().splitlines())


@contextmanager
def _sigterm_after_a_checkpoint(config: TrainConfig) -> Iterator[None]:
    """SIGTERM to this process once there is a checkpoint, sent where the command waits for its workers: never too late."""
    sent: list[Path] = []

    def wait_and_send(*arguments: Any, **more: Any) -> Any:
        if not sent and (found := list_checkpoints(Path(config.run_folder))):
            sent.extend(found)
            os.kill(os.getpid(), signal.SIGTERM)
        return wait(*arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.training.ray_workers.wait", wait_and_send)
        yield


def _wait_for_a_checkpoint(config: TrainConfig) -> None:
    while not list_checkpoints(Path(config.run_folder)):
        time.sleep(0.02)


def _kill_a_worker_after_a_checkpoint(config: TrainConfig) -> None:
    """SIGKILL to a process that trains, once there is a checkpoint to resume from."""
    _wait_for_a_checkpoint(config)
    workers = [child for child in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(child.cmdline())]
    workers[-1].kill()
