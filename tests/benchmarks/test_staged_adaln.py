"""The network with an adaLN in each block: it computes, trains and costs what the comparison says."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import staged_adaln_costs
from benchmarks.staged_adaln import PerBlockDiT, train_per_block
from benchmarks.staged_adaln_costs import NETWORKS, InFormat, adaln_costs, count_parameters, modulate_in
from benchmarks.staged_config import StagedTrainingConfig
from benchmarks.staged_experiments import adaln
from benchmarks.staged_trainings import (
    PER_BLOCK,
    SCRATCH,
    validation_losses,
)
from foundry.hardware import auto_dtype
from model.diffusion import Diffusion
from model.dit import DiT
from model.dit_config import PRESETS
from model.formats.checkpoint import PipelineConfig, read_transformer_config, save_checkpoint
from tests.benchmarks.test_staged_training import write_trained
from tests.model.real_memory import allocated_peak
from tests.model.tiny_networks import TEXT, TIMESTEPS, captions, latents, random_network
from tests.trainer.tiny_training import CAPTION_WIDTH, tiny_config, write_store
from trainer.config.running import CheckpointConfig
from trainer.monitoring.run_folder import list_checkpoints
from trainer.training.networks import attention_kernel


def test_per_block_adaln_equals_adaln_single_where_all_mlps_are_one_and_all_tables_zero() -> None:
    single, per_block = random_network(TEXT), PerBlockDiT(TEXT).eval()
    with torch.no_grad():
        for block in single.blocks:
            block.scale_shift_table.zero_()  # type: ignore[operator]
    single.final_layer = per_block.final_layer
    torch.nn.init.normal_(per_block.final_layer.linear.weight)
    shared = {name.removeprefix("t_block.1."): tensor for name, tensor in single.state_dict().items() if "t_block" in name}
    state = per_block.state_dict()
    for name, tensor in state.items():
        _, adaln, kind = name.partition("adaLN_modulation.1.")
        if name.startswith("blocks.") and adaln:
            tensor.copy_(shared[kind])
        elif name in single.state_dict():
            tensor.copy_(single.state_dict()[name])
    found, expected = (network(latents(), TIMESTEPS, captions=captions()) for network in (per_block, single))
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected)


def test_adaln_single_has_fewer_parameters_by_the_mlps_of_the_blocks() -> None:
    """At the paper's size: 28 blocks' MLPs and the final layer's, against one MLP and the tables."""
    width, depth = 1152, 28
    mlp = 6 * width * (width + 1)
    single, per_block = (count_parameters(network, PRESETS["XL/2"]) for network in (DiT, PerBlockDiT))
    assert single == 610_856_096
    assert per_block - single == depth * (mlp - 6 * width) - mlp + 2 * width * (width + 1) - 2 * width


def test_a_killed_training_with_per_block_adaln_resumes_as_if_nothing_had_been(tmp_path: Path) -> None:
    write_store(tmp_path / "features")
    config = tiny_config(tmp_path, images=40, checkpoint=CheckpointConfig(every_images=20, keep_last=9))
    assert train_per_block(config)
    unbroken = Path(config.run_folder)
    half = list_checkpoints(unbroken)[0]
    resumed = replace(config, run_dir=str(tmp_path / "resumed"))
    shutil.copytree(half, Path(resumed.run_folder) / "checkpoints" / half.name)
    assert train_per_block(resumed)
    later = {images: loss for images, loss in validation_losses(unbroken).items() if images > int(half.name)}
    assert len(later) > 0 and validation_losses(Path(resumed.run_folder)) == later
    assert "resumes" in (Path(resumed.run_folder) / "log.txt").read_text()


def test_the_networks_of_the_comparison_have_the_parameters_that_the_docs_say() -> None:
    trained = replace(PRESETS["mini"], learned_variance=False)  # as examples/openmoji/demo.yaml has it
    assert [count_parameters(network, trained) for network in (DiT, PerBlockDiT)] == [6_995_776, 9_091_392]


def test_costs_are_of_both_networks(tmp_path: Path) -> None:
    features = write_store(tmp_path / "features", shapes=((16, 16),))
    network = random_network(TEXT, caption_width=CAPTION_WIDTH, sample_size=8)
    save_checkpoint(tmp_path / "network", network, PipelineConfig(objective="diffusion", resolution=16))
    measured = partial(adaln_costs, tmp_path / "network", features, batch_size=4, timed_steps=1, compiled=False)
    costs = measured(attention="math")
    for name in ("parameters", "memory_bytes"):
        assert costs[f"{name}_per_block"] > costs[f"{name}_single"] > 0
    for name, kind in NETWORKS.items():
        assert costs[f"memory_bytes_{name}"] == pytest.approx(_real_memory(kind, tmp_path / "network", features), rel=0.02)
        assert min(costs[f"{measure}_{name}"] for measure in ("step_s", "step_s_float32", "step_s_as_trained")) > 0
    assert measured(attention="auto")["memory_bytes_single"] < costs["memory_bytes_single"]  # the fused kernel keeps no matrix


def _real_memory(kind: type[DiT], checkpoint: Path, features: Path) -> int:
    """Weights, moments and average by their own sizes, and the peak of a second step by torch's allocator."""
    config, objective = read_transformer_config(checkpoint), Diffusion()
    part = staged_adaln_costs._samples(features, config, objective, 4)
    state = staged_adaln_costs._state(kind, config, compiled=False)
    with attention_kernel("math"):
        step = staged_adaln_costs._stepper(state, objective, part, getattr(torch, auto_dtype()))
        step()
        peak = allocated_peak(step)
    moments = [value for moment in state.optimizer.state.values() for value in moment.values()]
    kept: int = sum(tensor.nbytes for tensor in (*state.network.parameters(), *state.ema.weights.values(), *moments))
    return peak + kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", NETWORKS.values())
def test_both_sides_of_a_step_are_timed_in_one_number_format(kind: type[DiT], dtype: torch.dtype) -> None:
    """The shared MLP and those of all blocks compute in the format of the other matrix products, for the same output."""
    network = kind(TEXT).initialise(torch.Generator().manual_seed(0))
    expected = network(latents(), TIMESTEPS, captions=captions())
    formats: list[torch.dtype] = []
    for module in modulate_in(network, dtype).modules():
        if isinstance(module, InFormat) and isinstance(module.module, torch.nn.Sequential):
            module.module[1].register_forward_hook(lambda _module, _inputs, output: formats.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        network(latents(), TIMESTEPS, captions=captions())
    assert formats == [dtype] * (1 if kind is DiT else TEXT.depth + 1)
    torch.testing.assert_close(network(latents(), TIMESTEPS, captions=captions()), expected, rtol=0.05, atol=0.02)


def test_costs_are_measured_as_the_training_next_to_them_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = StagedTrainingConfig(out=str(tmp_path), images=64, batch_size=8, num_seeds=1)
    for arm in (SCRATCH, PER_BLOCK):
        write_trained(arm, 0, config, last_loss=0.5)
    settings: dict[str, object] = {}

    def measure(*_: Path, **given: object) -> dict[str, float]:
        settings.update(given)
        return {
            f"{cost}_{name}": 1.0
            for cost in ("parameters", "parameters_xl", "memory_bytes", "step_s", "step_s_float32", "step_s_as_trained")
            for name in NETWORKS
        }

    monkeypatch.setattr(staged_adaln_costs, "adaln_costs", measure)
    adaln(config)
    assert settings == {"batch_size": 8, "timed_steps": 30, "compiled": False, "attention": "math"}
