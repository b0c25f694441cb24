"""Trainings in processes forked from one that has imported the trainer: two workers, one that is killed. None imports it again,
which takes seconds."""

import multiprocessing
import os
import signal
from contextlib import ExitStack, redirect_stdout
from functools import partial
from pathlib import Path

import torch
from torch.multiprocessing.spawn import start_processes

from tests.ray_nodes import free_ports
from tests.trainer.tiny_training import acting_after_step
from trainer.config.train import TrainConfig
from trainer.fit import main

multiprocessing.get_context("forkserver").set_forkserver_preload(["trainer.training.loop", "torch._dynamo", __name__])


def train_together(config: TrainConfig, *, num_workers: int = 2, code: int = 0, said: Path | None = None) -> None:
    """Trains with several workers, as torchrun would start them, whose exit code is to be `code`.

    What they print is added to the file `said`; a forked process cannot see where the tests' own output goes by now.
    """
    (port,) = free_ports(1)
    worker = partial(_worker, num_workers=num_workers, config=config, port=port, code=code, said=said)
    start_processes(worker, nprocs=num_workers, start_method="forkserver")


def train_until_killed(config: TrainConfig, *, step: int) -> None:
    """Trains in another process, which SIGKILL ends after a step, from 1, before that step's checkpoint."""
    process = multiprocessing.get_context("forkserver").Process(target=_until_killed, args=(config, step))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _until_killed(config: TrainConfig, step: int) -> None:
    torch.set_num_threads(1)
    with acting_after_step(Path(config.run_folder), step, lambda: os.kill(os.getpid(), signal.SIGKILL)):
        main(config)


def _worker(rank: int, *, num_workers: int, config: TrainConfig, port: int, code: int, said: Path | None) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(num_workers), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    with ExitStack() as stack:
        if said is not None:
            stack.enter_context(redirect_stdout(stack.enter_context(said.open("a"))))
        assert main(config) == code
