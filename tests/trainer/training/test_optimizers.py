"""Muon and 8-bit AdamW: the update is what their papers say, and a training with them keeps all promises of one with AdamW."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.multiprocessing.spawn import start_processes

from foundry.errors import UserError
from model.dit import DiT, DiTConfig
from model.layers.matrices import block_matrices
from tests.trainer.tiny_training import (
    CAPTION_WIDTH,
    newest_weights,
    tiny_config,
    training_losses,
    write_store,
)
from tests.trainer.two_workers import train_until_killed
from trainer.config.data import DataConfig
from trainer.config.ladder import Rung
from trainer.config.network import NetworkConfig
from trainer.config.optim import OptimConfig
from trainer.config.running import WatchConfig
from trainer.config.techniques import Sra2Config
from trainer.config.train import TrainConfig
from trainer.fit import main
from trainer.monitoring.run_folder import newest_checkpoint
from trainer.training.optimizer import make_moments, make_optimizer, named_moments
from trainer.training.techniques.muon import Muon, MuonSettings, newton_schulz

NETWORK = DiTConfig(width=24, depth=2, num_heads=2, caption_width=CAPTION_WIDTH, sample_size=8, max_caption_tokens=10)
MUON = OptimConfig(name="muon", lr=1e-3, warmup_steps=2)
FLOAT32 = MuonSettings(momentum=0.95, num_iterations=5, dtype=torch.float32)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("features")
    write_store(root)
    return root


def _matrix(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _others() -> list[dict[str, Any]]:
    """A parameter for AdamW, which wants one."""
    return [{"params": [nn.Parameter(_matrix(2))]}]


@pytest.mark.parametrize("shape", [(1, 24, 24), (3, 24, 24), (2, 40, 8), (1, 8, 40)])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, int, int]) -> None:
    matrices = _matrix(*shape)
    found = newton_schulz(matrices, num_iterations=5, dtype=torch.float32)
    for matrix, orthogonal in zip(matrices, found, strict=True):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        ours = left.T @ orthogonal @ right.T  # diagonal where the singular vectors are the same
        strong = values > 0.1 * values[0]
        assert bool(((ours.diagonal()[strong] > 0.6) & (ours.diagonal()[strong] < 1.3)).all())
        assert float((ours - torch.diag(ours.diagonal())).abs().max()) < 1e-4


def test_a_matrix_of_zeros_stays() -> None:
    found = newton_schulz(torch.zeros(1, 4, 6), num_iterations=5, dtype=torch.float32)
    assert torch.equal(found, torch.zeros(1, 4, 6))


def test_the_steps_are_those_of_torch_on_whole_matrices() -> None:
    """torch's has the scale of the update in its `match_rms_adamw`, and iterates in bfloat16."""
    ours, theirs = (nn.Parameter(_matrix(24, 40)) for _ in range(2))
    optimizer = Muon({ours: 1}, _others(), FLOAT32, lr=0.1)
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    begin = ours.detach().clone()
    for step in range(4):
        ours.grad, theirs.grad = _matrix(24, 40) * (step + 1), _matrix(24, 40) * (step + 1)
        optimizer.step()
        reference.step()
    with torch.no_grad():
        assert float((ours - theirs).norm()) < 0.02 * float((ours - begin).norm())


def test_fused_matrices_are_made_orthogonal_one_by_one_each_with_its_own_scale() -> None:
    """Keys with a gradient a thousand times that of queries do not take the update from them."""
    gradient = torch.cat([_matrix(24, 24), 1000 * _matrix(24, 24).T, _matrix(24, 24) @ _matrix(24, 24)])
    split, fused, *single = (nn.Parameter(torch.zeros_like(part)) for part in (gradient, gradient, *gradient.chunk(3)))
    optimizer = Muon({split: 3} | dict.fromkeys(single, 1), _others(), FLOAT32, lr=1.0)
    other = Muon({fused: 1}, _others(), FLOAT32, lr=1.0)
    for parameter, part in zip((split, fused, *single), (gradient, gradient, *gradient.chunk(3)), strict=True):
        parameter.grad = part.clone()
    optimizer.step()
    other.step()
    torch.testing.assert_close(split, torch.cat([*single]))
    with torch.no_grad():
        rms = [float(part.square().mean().sqrt()) for part in split.chunk(3)]
        assert all(0.12 < one < 0.25 for one in rms)  # AdamW's is 0.2
        assert float((split - fused).norm()) > 0.5 * float(split.norm())


def test_muon_has_the_matrices_of_blocks_and_adamw_all_else() -> None:
    network = DiT(replace(NETWORK, qk_norm=True))
    matrices = block_matrices(network)
    per_block = {"attn.qkv": 3, "attn.proj": 1, "mlp.fc1": 1, "mlp.fc2": 1}
    per_block |= {"cross_attn.q_linear": 1, "cross_attn.kv_linear": 2, "cross_attn.proj": 1}
    assert matrices == {f"blocks.{block}.{name}.weight": num for block in range(2) for name, num in per_block.items()}
    optimizer = make_optimizer(network, MUON)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decayed, plain, muon = ([names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups)
    assert set(muon) == set(matrices) and optimizer.param_groups[2]["weight_decay"] == 0
    assert {"x_embedder.proj.weight", "t_block.1.weight", "final_layer.linear.weight", "y_embedder.y_proj.fc1.weight"} <= set(
        decayed
    )
    assert "blocks.0.scale_shift_table" in plain and "blocks.0.attn.qkv.bias" in plain
    assert sorted(decayed + plain + muon) == sorted(names.values())
    adapted = set(block_matrices(DiT(replace(NETWORK, text_adapter_blocks=1)))) - set(matrices)
    assert adapted == {
        f"text_adapter.0.{name}.weight" for name in ("attn.qkv", "attn.proj", "mlp.gate", "mlp.value", "mlp.proj")
    }
    classes = DiT(DiTConfig(width=24, depth=1, num_heads=2, conditioning="class", num_classes=3, sample_size=8))
    assert not any("adaLN" in name for name in block_matrices(classes))


def _config(features: Path, root: Path, optim: OptimConfig, **changes: Any) -> TrainConfig:
    return tiny_config(root, features=str(features), optim=optim, **changes)


def _same(first: TrainConfig, second: TrainConfig) -> bool:
    ours, theirs = newest_weights(first), newest_weights(second)
    return training_losses(first) == training_losses(second) and all(torch.equal(ours[name], theirs[name]) for name in ours)


HALF = (Rung(resolution=16, images=20, batch_size=4),)


def test_muon_resumes_bit_for_bit_and_as_nothing_else(features: Path, tmp_path: Path) -> None:
    unbroken, broken = _config(features, tmp_path, MUON), _config(features, tmp_path / "broken", MUON)
    assert main(unbroken) == 0
    assert main(replace(broken, ladder=HALF)) == 0
    for other, words in [
        (OptimConfig(lr=1e-3), "optimiser muon then, adamw now"),
        (replace(MUON, muon_split=False), "optimiser muon then, muon on fused matrices now"),
    ]:
        with pytest.raises(UserError, match=rf"is of another training \({words}\)"):
            main(replace(broken, optim=other))
    assert main(broken) == 0
    assert _same(unbroken, broken)
    losses = list(training_losses(unbroken).values())
    assert losses[-1] < losses[0]
    cut = _config(features, tmp_path / "cut", MUON, device_tokens=2 * 16)
    assert main(cut) == 0
    assert training_losses(cut) == pytest.approx(training_losses(unbroken), rel=1e-3)
    fused = _config(features, tmp_path / "fused", replace(MUON, muon_split=False), images=12)
    assert main(fused) == 0
    assert training_losses(fused)[12] != training_losses(unbroken)[12]


@pytest.mark.slow
def test_a_killed_training_by_muon_resumes_bit_for_bit(features: Path, tmp_path: Path) -> None:
    """With weights and recorded losses too: each recorded step is there once."""
    pq.write_table(pa.table({"key": ["u0r1", "u1r4"], "weight": [3.0, 0.5]}), tmp_path / "weights.parquet")
    data = DataConfig(loader_threads=1, weights=str(tmp_path / "weights.parquet"))
    watch = WatchConfig(every_steps=1, validate_every_images=0, sample_every_images=0, record_losses_every_steps=1)
    unbroken, killed = (_config(features, tmp_path / name, MUON, data=data, watch=watch) for name in ("unbroken", "killed"))
    assert main(unbroken) == 0
    train_until_killed(killed, step=8)
    assert main(killed) == 0
    assert _same(unbroken, killed)
    tables = [pq.read_table(Path(config.run_folder) / "losses") for config in (unbroken, killed)]
    assert tables[0].equals(tables[1]) and len(tables[0]) == 40


def test_muon_goes_with_the_techniques(features: Path, tmp_path: Path) -> None:
    """The projector of SRA 2 has AdamW's moments, the text adapter's matrices have momentum; both are resumed."""
    changes: dict[str, Any] = {
        "network": NetworkConfig(width=24, depth=4, num_heads=2, text_adapter_blocks=1),
        "sra2": Sra2Config(enabled=True),
    }
    unbroken, broken = (_config(features, tmp_path / name, MUON, **changes) for name in ("unbroken", "broken"))
    assert main(unbroken) == main(replace(broken, ladder=HALF)) == main(broken) == 0
    assert _same(unbroken, broken)
    newest = newest_checkpoint(Path(broken.run_folder))
    assert newest is not None
    stored = FileSystemReader(newest / "training").read_metadata().state_dict_metadata
    assert "optimizer.text_adapter.0.attn.qkv.weight.momentum" in stored
    assert any(name.startswith("sra2.optimizer.") and name.endswith("exp_avg_sq") for name in stored)
    assert not any("sra2" in name and "momentum" in name for name in stored)


def test_adamw_refuses_checkpoints_of_muon(features: Path, tmp_path: Path) -> None:
    config = _config(features, tmp_path, OptimConfig(lr=1e-3, warmup_steps=2), images=4)
    assert main(config) == 0
    with pytest.raises(UserError, match="optimiser adamw then, muon now"):
        main(replace(config, optim=MUON, ladder=HALF))


def test_settings_out_of_bounds_are_named() -> None:
    with pytest.raises(ValueError, match=r"optim.momentum must be in \[0, 1\); optim.newton_schulz_steps must be 1 to 20"):
        tiny_config(Path(), optim=OptimConfig(momentum=1.0, newton_schulz_steps=0))


@pytest.mark.slow
def test_shards_of_unequal_rows_get_the_update_of_the_whole(tmp_path: Path) -> None:
    """Weights of 7, 9, 1 and 4 rows among three workers: some have fewer rows, some none; the second round has one matrix."""
    start_processes(_step_sharded, args=(str(tmp_path / "store"),), nprocs=3, start_method="forkserver")


def _step_sharded(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3)
    mesh = init_device_mesh("cpu", (3,))
    parts = {(7, 5): 1, (9, 4): 3, (1, 6): 1, (4, 4): 2}
    sharded, whole = (
        {nn.Parameter(share(torch.zeros(shape))): number for shape, number in parts.items()}
        for share in (lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)]), lambda tensor: tensor)
    )
    optimizer = Muon(sharded, _others(), FLOAT32, lr=1.0)
    for step in range(2):
        for parameter in sharded:
            parameter.grad = distribute_tensor(_matrix(*parameter.shape) * (step + 1), mesh, [Shard(0)])
        optimizer.step()
    found = [parameter.full_tensor() for parameter in sharded]  # type: ignore[attr-defined]
    dist.destroy_process_group()
    alone = Muon(whole, _others(), FLOAT32, lr=1.0)
    for step in range(2):
        for parameter in whole:
            parameter.grad = _matrix(*parameter.shape) * (step + 1)
        alone.step()
    for ours, expected in zip(found, whole, strict=True):
        torch.testing.assert_close(ours, expected.detach())


EIGHT_BITS = OptimConfig(name="adamw8bit", lr=1e-3, warmup_steps=2)
WIDE = NetworkConfig(width=48, depth=1, num_heads=2)
"""Its larger weights have 4096 values and more, and get 8 bits."""


def test_without_its_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(UserError, match="adamw8bit needs torchao, which is not installed: pip install torchao") as error:
        make_optimizer(DiT(NETWORK), EIGHT_BITS)
    assert error.value.setting == "optim.name"


def test_eight_bits_hold_a_quarter_and_resume_bit_for_bit(features: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    network = DiT(replace(NETWORK, width=48, depth=1)).initialise(torch.Generator().manual_seed(0))
    optimizer = make_optimizer(network, EIGHT_BITS, compiled=False)
    make_moments(optimizer)
    moments = named_moments(optimizer, network)
    assert moments["blocks.0.attn.qkv.weight.exp_avg.codes"].dtype == torch.uint8
    num_bytes = {name: tensor.nbytes for name, tensor in moments.items() if name.startswith("blocks.0.attn.qkv.weight.exp")}
    assert sum(num_bytes.values()) == 2 * (1 + 4 / 256) * 3 * 48 * 48
    unbroken = _config(features, tmp_path, EIGHT_BITS, network=WIDE)
    broken = _config(features, tmp_path / "broken", EIGHT_BITS, network=WIDE)
    assert main(unbroken) == 0
    assert main(replace(broken, ladder=HALF)) == 0
    with pytest.raises(UserError, match="optimiser adamw8bit then, adamw now"):
        main(replace(broken, optim=OptimConfig(lr=1e-3)))
    assert main(broken) == 0
    assert _same(unbroken, broken)
    plain = _config(features, tmp_path / "plain", OptimConfig(lr=1e-3, warmup_steps=2), network=WIDE)
    assert main(plain) == 0
    assert training_losses(unbroken) != training_losses(plain)
    assert training_losses(unbroken) == pytest.approx(training_losses(plain), rel=0.02)
