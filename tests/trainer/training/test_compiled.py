"""Compiled blocks: few graphs for all shapes, and exact resume, whichever shape comes first after it."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from tests.trainer.tiny_training import tiny_config, write_store
from trainer.config.running import CheckpointConfig
from trainer.config.train import TrainConfig
from trainer.fit import main
from trainer.monitoring.run_folder import list_checkpoints, newest_checkpoint, read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_compiled")]

BUCKETS = ((16, 16), (24, 8), (8, 24), (20, 12), (12, 20))


def _losses(config: TrainConfig) -> dict[int, float]:
    return {row["images_seen"]: row["loss"] for row in read_metrics(Path(config.run_folder)) if row["kind"] == "train"}


def _weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    newest = newest_checkpoint(Path(config.run_folder))
    assert newest is not None
    return load_file(newest / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.mark.timeout(600)
def test_resumed_is_unbroken_with_compiled_blocks_too(tmp_path: Path) -> None:
    write_store(tmp_path / "features", num_units=10, shapes=BUCKETS)
    keep = CheckpointConfig(every_images=24, keep_last=9)
    config = tiny_config(tmp_path, images=60, compile=True, precision="bfloat16", checkpoint=keep)
    assert main(config) == 0
    assert 1 <= counters["stats"]["unique_graphs"] <= 6, counters["stats"]
    assert not counters["recompile_limit"], counters
    for checkpoint in list_checkpoints(Path(config.run_folder))[:-1]:
        torch.compiler.reset()  # as in a new process: what is compiled first is the shape of the next batch
        resumed = replace(config, run_dir=str(tmp_path / checkpoint.name))
        shutil.copytree(checkpoint, Path(resumed.run_folder) / "checkpoints" / checkpoint.name)
        assert main(resumed) == 0
        losses = _losses(config)
        assert _losses(resumed) == {seen: loss for seen, loss in losses.items() if seen > int(checkpoint.name)}
        ours, theirs = _weights(resumed), _weights(config)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
