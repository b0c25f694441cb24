"""LoRA in a training: the adapter alone learns, is averaged and stored, and a training with it keeps all promises of any."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.distributed.checkpoint.filesystem import FileSystemReader

from foundry.errors import UserError
from model.formats.checkpoint import (
    PartConfig,
    is_adapted,
    load_checkpoint,
    read_own_adapter,
    read_pipeline_config,
    save_checkpoint,
)
from model.generation.pipeline_parts import RuntimeConfig
from tests.model.tiny_parts import save_tiny_vae, tiny_vae
from tests.trainer.test_distributed import _rows
from tests.trainer.tiny_training import (
    continued_from,
    have_same_weights,
    newest_of,
    newest_weights,
    tiny_config,
    training_losses,
    write_store,
)
from tests.trainer.two_workers import train_together, train_until_killed
from trainer.config.adaptation import LoraConfig
from trainer.config.ladder import Rung
from trainer.config.network import NetworkConfig
from trainer.config.optim import OptimConfig
from trainer.config.running import CheckpointConfig, DistributedConfig, Sharding, WatchConfig
from trainer.config.techniques import Sra2Config
from trainer.config.train import TrainConfig
from trainer.fit import main
from trainer.monitoring.run_folder import LOG, newest_checkpoint
from trainer.monitoring.validation import validation_loss

LORA = LoraConfig(rank=4, trigger_word="sks")
KEEP = CheckpointConfig(every_images=8, keep_last=9)
HALF = (Rung(resolution=16, images=8, batch_size=4),)
FILE = "lora.safetensors"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of two stages, and a network that the first one trained."""
    root = tmp_path_factory.mktemp("lora")
    for stage in ("alignment", "aesthetic"):
        write_store(root / "features", stage=stage)
    assert main(tiny_config(root, images=20)) == 0
    return root


def _config(root: Path, run_dir: Path, lora: LoraConfig = LORA, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "stage": "aesthetic",
        "images": 16,
        "init_from": str(root / "runs" / "alignment"),
        "run_dir": str(run_dir),
        "optim": OptimConfig(lr=1e-2, warmup_steps=1, gradient_clip=1.0),
        "checkpoint": KEEP,
    }
    return tiny_config(root, lora=lora, **settings | changes)


@pytest.fixture(scope="module")
def unbroken(root: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    config = _config(root, tmp_path_factory.mktemp("unbroken"))
    assert main(config) == 0
    return config


def test_the_adapter_alone_learns_and_is_all_that_a_checkpoint_holds(root: Path, unbroken: TrainConfig) -> None:
    checkpoint, base = newest_of(unbroken), root / "runs" / "alignment"
    adapter = read_own_adapter(checkpoint)
    assert is_adapted(checkpoint) and adapter.rank == 4 and adapter.trigger_word == "sks"
    assert Path(adapter.base) == newest_checkpoint(base) and len(adapter.layers) == 2 * 7
    assert all(float(layer.up.abs().max()) > 0 for layer in adapter.layers.values())
    before, after = (load_checkpoint(folder)[0].state_dict() for folder in (base, checkpoint))
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{name}.weight" for name in adapter.layers}
    stored = FileSystemReader(checkpoint / "training").read_metadata().state_dict_metadata
    assert all(".lora_" in name for name in stored if name.startswith(("network.", "ema.", "optimizer.")))
    assert adapter.num_parameters == sum(
        tensor.numel() for name, tensor in newest_weights(unbroken, FILE).items() if not name.endswith("alpha")
    )
    log = (Path(unbroken.run_folder) / LOG).read_text()
    assert f"LoRA of rank 4, alpha 4: {adapter.num_parameters:,} values are trained, {adapter.base}" in log


@pytest.mark.parametrize(
    ("lora", "changes"),
    [
        (LORA, {}),
        (LoraConfig(rank=4, dropout=0.3), {}),
        (LoraConfig(rank=2, alpha=3.0, dora=True, rslora=True, base="int8"), {"gradient_checkpointing": True}),
        (replace(LORA, targets=("attn.qkv", "y_proj.fc1")), {"device_tokens": 2 * 16, "sra2": Sra2Config(enabled=True)}),
    ],
    ids=["plain", "dropout", "DoRA in 8 bits, recomputed", "targets, accumulated, with SRA 2"],
)
def test_a_training_resumes_bit_for_bit(root: Path, tmp_path: Path, lora: LoraConfig, changes: dict[str, Any]) -> None:
    if "sra2" in changes:
        changes = changes | {"network": NetworkConfig(width=24, depth=2, num_heads=2)}
    whole = _config(root, tmp_path / "whole", lora, **changes)
    assert main(whole) == 0
    resumed = continued_from(whole, tmp_path / "resumed", images_seen=8)
    torch.manual_seed(99)  # what else draws from torch's generator does not matter
    assert main(resumed) == 0
    after = {seen: loss for seen, loss in training_losses(whole).items() if seen > 8}
    assert training_losses(resumed) == after and len(after) == 2
    assert have_same_weights(whole, resumed, FILE)


def test_how_a_batch_is_cut_and_what_is_recomputed_change_nothing(unbroken: TrainConfig, tmp_path: Path) -> None:
    for number, change in enumerate([{"device_tokens": 2 * 16}, {"gradient_checkpointing": True}]):
        config = replace(unbroken, run_dir=str(tmp_path / str(number)), **change)  # type: ignore[arg-type]
        assert main(config) == 0
        assert training_losses(config) == pytest.approx(training_losses(unbroken), rel=1e-4)
    dropped = replace(unbroken, run_dir=str(tmp_path / "dropped"), lora=replace(LORA, dropout=0.5))
    assert main(dropped) == 0
    assert list(training_losses(dropped).values())[-1] != list(training_losses(unbroken).values())[-1]


def test_what_does_not_fit_is_refused_in_a_line(root: Path, unbroken: TrainConfig, tmp_path: Path) -> None:
    resumed = continued_from(unbroken, tmp_path / "resumed", images_seen=8)
    for changed, words in [
        (replace(resumed, lora=replace(LORA, rank=8)), "lora.alpha 4.0 then, 8.0 now; lora.rank 4 then, 8 now"),
        (replace(resumed, lora=LoraConfig()), "lora on then, off now"),
    ]:
        with pytest.raises(UserError, match=rf"is of another training \({words}\)"):
            main(changed)
    fresh = _config(root, tmp_path / "fresh")
    for changed, words, setting in [
        (replace(fresh, init_from="scratch"), "a LoRA adapts a network that is trained already", "init_from"),
        (replace(fresh, lora=replace(LORA, targets=("qvk",))), "has no linear layer qvk", "lora.targets"),
        (
            replace(fresh, network=NetworkConfig(width=24, depth=2, num_heads=2, micro_conditioning=True)),
            "neither a LoRA nor a control can give .* what it lacks",
            "network",
        ),
    ]:
        with pytest.raises(UserError, match=words) as error:
            main(changed)
        assert error.value.setting == setting
    full = tiny_config(root, stage="aesthetic", images=8, init_from=str(root / "runs" / "alignment"), run_dir=str(tmp_path))
    assert main(full) == 0
    with pytest.raises(UserError, match="lora off then, on now"):
        main(replace(full, lora=LORA, ladder=(Rung(resolution=16, images=16, batch_size=4),)))
    with pytest.raises(ValueError, match=r"lora.rank must be 1 or more with other settings of lora"):
        _config(root, tmp_path, LoraConfig(dora=True))
    with pytest.raises(ValueError, match=r"optim.name must be adamw or adamw8bit with lora"):
        _config(root, tmp_path, optim=OptimConfig(name="muon"))


def test_a_base_that_changed_is_refused(root: Path, tmp_path: Path) -> None:
    base = tiny_config(root, images=4, run_dir=str(tmp_path / "base"))
    assert main(base) == 0
    config = replace(_config(root, tmp_path / "runs"), init_from=base.run_folder)
    assert main(replace(config, ladder=HALF)) == 0
    weights = next(Path(base.run_folder).rglob("diffusion_pytorch_model.safetensors"))
    other = next((root / "runs" / "alignment").rglob("diffusion_pytorch_model.safetensors"))
    weights.write_bytes(other.read_bytes())
    with pytest.raises(UserError, match=r"is a LoRA of .* with the fingerprint \w{16}, and .* has \w{16}"):
        main(config)


def test_another_stage_or_lora_starts_from_the_sum(root: Path, unbroken: TrainConfig, tmp_path: Path) -> None:
    full = tiny_config(root, stage="aesthetic", images=4, init_from=unbroken.run_folder, run_dir=str(tmp_path / "full"))
    assert main(full) == 0 and not is_adapted(newest_of(full))
    second = replace(unbroken, init_from=unbroken.run_folder, run_dir=str(tmp_path / "second"))
    assert main(second) == 0
    assert read_own_adapter(newest_of(second)).base == str(newest_of(unbroken))
    assert load_checkpoint(newest_of(second))[0].config == load_checkpoint(newest_of(unbroken))[0].config


@pytest.mark.parametrize("base", ["float32", "int8"])
def test_samples_are_drawn_by_the_base_with_the_averaged_adapter(tmp_path: Path, base: Any) -> None:
    vae = save_tiny_vae(tmp_path / "vae")
    part = PartConfig(name=str(vae), fingerprint=tiny_vae(vae).fingerprint())
    for stage in ("alignment", "aesthetic"):
        write_store(tmp_path / "features", stage=stage, vae=part)
    assert main(tiny_config(tmp_path, images=4)) == 0
    watch = WatchConfig(every_steps=1, validate_every_images=4, validation_images=4, sample_every_images=4, sample_steps=2)
    config = _config(tmp_path, tmp_path / "adapted", LoraConfig(rank=2, base=base), images=4, watch=watch)
    assert main(config) == 0
    with Image.open(Path(config.run_folder) / "samples" / "000000000004.png") as grid:
        assert len(set(grid.convert("RGB").getdata())) > 9
    network = load_checkpoint(newest_of(config))[0]
    merged = Path(config.run_folder) / "merged"
    save_checkpoint(merged, network, read_pipeline_config(newest_of(config)))
    found = validation_loss(
        str(merged), config.features_folder(config.ladder[0]), num_images=4, runtime=RuntimeConfig(device="cpu")
    )
    (expected,) = _rows(config, "validation").values()
    assert found.loss == pytest.approx(expected, rel=1e-4 if base == "float32" else 1e-2)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("traced")
def test_compiled_blocks_train_as_plain_ones(root: Path, tmp_path: Path) -> None:
    """With the most that an adapter puts into a layer: a DoRA's norms, around a matrix in 8 bits."""
    lora = LoraConfig(rank=4, dora=True, base="int8")
    plain, compiled = (_config(root, tmp_path / name, lora, compile=name == "compiled") for name in ("plain", "compiled"))
    assert main(plain) == main(compiled) == 0
    assert training_losses(compiled) == pytest.approx(training_losses(plain), rel=1e-3)


@pytest.mark.slow
def test_a_killed_training_resumes_bit_for_bit(root: Path, tmp_path: Path) -> None:
    lora = replace(LORA, dropout=0.2)
    unbroken, killed = (_config(root, tmp_path / name / "runs", lora, images=40) for name in ("unbroken", "killed"))
    assert main(unbroken) == 0
    train_until_killed(killed, step=6)
    assert main(killed) == 0
    assert have_same_weights(unbroken, killed, FILE) and training_losses(unbroken) == training_losses(killed)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["float32", "int8"])
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_workers_are_one_within_rounding(root: Path, tmp_path: Path, sharding: Sharding, base: Any) -> None:
    """One half by two workers, the other by one, which read each other's checkpoints."""
    watch = WatchConfig(every_steps=1, validate_every_images=8, validation_images=7, sample_every_images=0)
    lora = LoraConfig(rank=4, base=base)
    config = _config(root, tmp_path / "together", lora, watch=watch, distributed=DistributedConfig(sharding=sharding))
    alone = replace(config, run_dir=str(tmp_path / "alone"))
    assert main(alone) == 0
    if sharding == "ddp":
        train_together(replace(config, ladder=HALF))
        assert main(config) == 0
    else:
        assert main(replace(config, ladder=HALF)) == 0
        train_together(config)
    for kind in ("train", "validation"):
        assert _rows(config, kind) == pytest.approx(_rows(alone, kind), rel=1e-4), kind
    ours, theirs = newest_weights(config, FILE), newest_weights(alone, FILE)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-3) for name in theirs)
