"""What one worker reads for all arrives on all, and so does what stopped it."""

from pathlib import Path

import pytest
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from foundry.errors import UserError
from foundry.storage.folder import Folder
from tests.trainer.tiny_training import write_store
from trainer.distributed import Workers
from trainer.training.networks import shared_commits


@pytest.mark.slow
def test_the_first_worker_reads_the_commits_for_all(tmp_path: Path) -> None:
    features = write_store(tmp_path / "features")
    start_processes(_read, args=(str(features), str(tmp_path / "store")), nprocs=2, start_method="forkserver")


def _read(rank: int, features: str, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    workers = Workers(rank=rank, num=2, control=dist.group.WORLD)
    here = features if rank == 0 else "/nowhere"
    found = shared_commits(Folder(here), workers=workers)
    assert [commit.unit for commit in found] == [0, 1, 2, 3]
    assert all(commit.files["latents"].rows == 6 for commit in found)
    with pytest.raises(UserError, match="the first worker's alone"):
        workers.first_does(_refuse)
    dist.destroy_process_group()


def _refuse() -> None:
    raise UserError("the first worker's alone", setting="features")


def test_one_worker_needs_no_group() -> None:
    assert Workers().first_does(lambda: 3) == 3
    with pytest.raises(UserError, match="the first worker's alone"):
        Workers().first_does(_refuse)
