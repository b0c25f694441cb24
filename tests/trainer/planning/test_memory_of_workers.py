"""Memory of a plan is an upper bound of what two real workers take, also where gradients are accumulated."""

import os
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import start_processes

from tests.model.real_memory import allocated_peak
from tests.ray_nodes import free_ports
from tests.trainer.tiny_training import CAPTION_WIDTH, tiny_config, write_store
from trainer.config.ladder import Rung
from trainer.config.network import NetworkConfig
from trainer.config.optim import OptimConfig
from trainer.config.running import DistributedConfig, Sharding
from trainer.config.train import TrainConfig
from trainer.fit import main
from trainer.planning.memory import measure_activations, training_memory
from trainer.training.rung import RungTraining

SIDE, PATCH = 8, 2
"""Latents of the store, and the network's patch."""


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_step_of_two_workers_takes_no_more(tmp_path: Path, sharding: Sharding, micro_batches: int) -> None:
    write_store(tmp_path / "features", shapes=((16, 16),))
    images, tokens = 2, (SIDE // PATCH) ** 2
    config = tiny_config(
        tmp_path,
        network=NetworkConfig(width=96, depth=6, num_heads=4),
        ladder=(Rung(resolution=16, images=3 * 2 * images * micro_batches, batch_size=2 * images * micro_batches),),
        device_tokens=images * tokens,
        distributed=DistributedConfig(sharding=sharding),
    )
    (port,) = free_ports(1)
    start_processes(_measured, args=(config, port, tmp_path), nprocs=2, start_method="forkserver")
    measured = max(int((tmp_path / f"peak{rank}").read_text()) for rank in range(2))
    network = config.network.dit_config(
        conditioning="text",
        sample_size=SIDE,
        in_channels=4,
        caption_width=CAPTION_WIDTH,
        max_caption_tokens=10,
        learned_variance=True,
    )
    memory = training_memory(
        network,
        measure_activations(network, grid=(SIDE // PATCH,) * 2, gradient_checkpointing=False, precision="float32"),
        num_shards=1 if sharding == "ddp" else 2,
        precision="float32",
        optim=OptimConfig(),
        accumulates=micro_batches > 1,
    )
    gradients = memory.gradients if sharding == "fsdp" else 0  # DDP's are its buckets, which are there before the step
    computed = gradients + memory.gathered + images * memory.activations_per_image
    largest = 4 * 96 * 384  # a gradient before it is added to those of the micro-batches before: left to a plan's overhead
    assert measured <= computed + largest and computed <= 2 * measured


def _measured(rank: int, config: TrainConfig, port: int, out: Path) -> None:
    """Trains as one of two workers; writes the peak of the third step, in bytes."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    run_step, done = RungTraining._step, [0]

    def step(training: RungTraining, *arguments: object, **more: object) -> int:
        done[0] += 1
        if done[0] != 3:
            return run_step(training, *arguments, **more)  # type: ignore[arg-type]
        found: list[int] = []
        peak = allocated_peak(lambda: found.append(run_step(training, *arguments, **more)))  # type: ignore[arg-type]
        (out / f"peak{rank}").write_text(str(peak))
        return found[0]

    RungTraining._step = step  # type: ignore[method-assign, assignment]
    assert main(config) == 0
