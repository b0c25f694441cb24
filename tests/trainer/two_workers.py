"""Two workers of a training, forked from one that has imported the trainer: none imports it again, which takes seconds."""

import multiprocessing
import os

import torch
from torch.multiprocessing.spawn import start_processes

from tests.ray_nodes import free_ports
from trainer.config.train import TrainConfig
from trainer.fit import main

multiprocessing.get_context("forkserver").set_forkserver_preload(["trainer.training.loop", __name__])


def train_together(config: TrainConfig) -> None:
    """Trains with two workers, as torchrun would start them."""
    (port,) = free_ports(1)
    start_processes(_worker, args=(config, port), nprocs=2, start_method="forkserver")


def _worker(rank: int, config: TrainConfig, port: int) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    assert main(config) == 0
