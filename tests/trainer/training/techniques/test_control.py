"""A control in a training: its copies alone learn, are averaged and stored, and it keeps all promises of any training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.distributed.checkpoint.filesystem import FileSystemReader

from foundry.errors import UserError
from model.control.control import put_control
from model.control.settings import EDGES
from model.formats.checkpoint import PartConfig, is_control, load_checkpoint, read_own_control
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
from trainer.config.adaptation import ControlConfig, LoraConfig
from trainer.config.ladder import Rung
from trainer.config.network import NetworkConfig
from trainer.config.optim import OptimConfig
from trainer.config.running import CheckpointConfig, DistributedConfig, Sharding, WatchConfig
from trainer.config.techniques import Sra2Config
from trainer.config.train import TrainConfig
from trainer.features.store import FeatureStore, SampleRequest
from trainer.fit import main
from trainer.monitoring.run_folder import LOG, newest_checkpoint

CONTROL = ControlConfig(kind="edges", blocks=2)
DEPTH = 3
HALF = (Rung(resolution=16, images=8, batch_size=4),)
FILE = "control.safetensors"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of two stages, those of the second with control images, and a network that the first one trained."""
    root = tmp_path_factory.mktemp("control")
    vae = save_tiny_vae(root / "vae")
    part = PartConfig(name=str(vae), fingerprint=tiny_vae(vae).fingerprint())
    write_store(root / "features", stage="alignment", vae=part)
    write_store(root / "features", stage="aesthetic", vae=part, control=EDGES)
    assert main(tiny_config(root, images=20, network=NetworkConfig(width=24, depth=DEPTH, num_heads=2))) == 0
    return root


def _config(root: Path, run_dir: Path, control: ControlConfig = CONTROL, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "stage": "aesthetic",
        "images": 16,
        "init_from": str(root / "runs" / "alignment"),
        "run_dir": str(run_dir),
        "network": NetworkConfig(width=24, depth=DEPTH, num_heads=2),
        "optim": OptimConfig(lr=1e-2, warmup_steps=1, gradient_clip=1.0),
        "checkpoint": CheckpointConfig(every_images=8, keep_last=9),
    }
    return tiny_config(root, control=control, **settings | changes)


@pytest.fixture(scope="module")
def unbroken(root: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """With samples and validation losses on the way."""
    watch = WatchConfig(every_steps=1, validate_every_images=8, validation_images=4, sample_every_images=16, sample_steps=2)
    config = _config(root, tmp_path_factory.mktemp("unbroken"), watch=watch)
    assert main(config) == 0
    return config


def test_the_copies_alone_learn_and_are_all_that_a_checkpoint_holds(root: Path, unbroken: TrainConfig) -> None:
    checkpoint, base = newest_of(unbroken), newest_checkpoint(root / "runs" / "alignment")
    control = read_own_control(checkpoint)
    assert is_control(checkpoint) and control.num_blocks == 2 and control.condition == EDGES
    assert base is not None and Path(control.base) == base
    network = load_checkpoint(base)[0]
    own = {
        name: tensor for index in (0, 1) for name, tensor in network.blocks[index].state_dict(prefix=f"{index}.block.").items()
    }
    assert all(not torch.equal(control.tensors[name], tensor) for name, tensor in own.items())
    assert all(float(control.tensors[f"{name}.weight"].abs().max()) > 0 for name in ("0.before", "0.after", "1.after"))
    stored = FileSystemReader(checkpoint / "training").read_metadata().state_dict_metadata
    tensors = [name for name in stored if name.startswith(("network.", "ema.", "optimizer."))]
    assert tensors and all(".control_blocks." in name for name in tensors)
    log = (Path(unbroken.run_folder) / LOG).read_text()
    assert f"control on {EDGES}: copies of 2 of 3 blocks, {control.num_parameters:,} values, are trained; {base}" in log


@pytest.mark.parametrize(
    ("control", "changes"),
    [
        (CONTROL, {}),
        (replace(CONTROL, blocks=1, dropout=0.4), {"gradient_checkpointing": True, "device_tokens": 2 * 16}),
    ],
    ids=["plain", "dropout, accumulated, recomputed"],
)
def test_a_training_resumes_bit_for_bit(root: Path, tmp_path: Path, control: ControlConfig, changes: dict[str, Any]) -> None:
    whole = _config(root, tmp_path / "whole", control, **changes)
    assert main(whole) == 0
    resumed = continued_from(whole, tmp_path / "resumed", images_seen=8)
    assert main(resumed) == 0
    after = {seen: loss for seen, loss in training_losses(whole).items() if seen > 8}
    assert training_losses(resumed) == after and len(after) == 2
    assert have_same_weights(whole, resumed, FILE)


def test_how_a_batch_is_cut_and_what_is_recomputed_change_nothing(unbroken: TrainConfig, tmp_path: Path) -> None:
    for number, change in enumerate([{"device_tokens": 2 * 16}, {"gradient_checkpointing": True}]):
        config = replace(unbroken, run_dir=str(tmp_path / str(number)), **change)  # type: ignore[arg-type]
        assert main(config) == 0
        assert training_losses(config) == pytest.approx(training_losses(unbroken), rel=1e-4)
    dropped = replace(unbroken, run_dir=str(tmp_path / "dropped"), control=replace(CONTROL, dropout=0.9))
    assert main(dropped) == 0
    assert list(training_losses(dropped).values())[-1] != list(training_losses(unbroken).values())[-1]


def test_validation_and_samples_are_of_the_average_with_control_images(unbroken: TrainConfig) -> None:
    (path,) = (Path(unbroken.run_folder) / "samples").glob("*.png")
    with Image.open(path) as grid:
        assert len(set(grid.convert("RGB").getdata())) > 9
    network = load_checkpoint(read_own_control(newest_of(unbroken)).base)[0]
    put_control(network, read_own_control(newest_of(unbroken)))
    rows = _rows(unbroken, "validation")
    assert len(rows) == 2 and len(set(rows.values())) == 2


def test_what_does_not_fit_is_refused_in_a_line(root: Path, unbroken: TrainConfig, tmp_path: Path) -> None:
    resumed = continued_from(unbroken, tmp_path / "resumed", images_seen=8)
    for changed, words in [
        (replace(resumed, control=replace(CONTROL, blocks=1)), "control.blocks 2 then, 1 now"),
        (replace(resumed, control=ControlConfig()), "control on then, off now"),
    ]:
        with pytest.raises(UserError, match=rf"is of another training \({words}\): .* init_from .*/runs/alignment"):
            main(changed)
    fresh = _config(root, tmp_path / "fresh")
    for changed, words, setting in [
        (replace(fresh, init_from="scratch"), "a control is of a network that is trained already", "init_from"),
        (replace(fresh, init_from=unbroken.run_folder), "is a control of .*, neither a network nor a LoRA", ""),
        (replace(fresh, control=replace(CONTROL, blocks=3)), "expected 1 to 2 copied blocks", "control.blocks"),
        (
            replace(fresh, stage="alignment"),
            "has control images none, expected edges/1: .*--control.kind edges",
            "control.kind",
        ),
    ]:
        with pytest.raises(UserError, match=words) as error:
            main(changed)
        assert error.value.setting == setting
    refused: list[tuple[dict[str, Any], str]] = [
        ({"lora": LoraConfig(rank=2)}, "control must be off with lora"),
        ({"sra2": Sra2Config(enabled=True)}, "control must be off with sra2"),
        ({"watch": WatchConfig(prompts=("owl",))}, "watch.prompts must be none with control"),
        ({"control": ControlConfig(dropout=0.5)}, "control.kind must be edges with other settings of control"),
        ({"optim": OptimConfig(name="muon")}, "optim.name must be adamw or adamw8bit with control"),
    ]
    for changes, words in refused:
        with pytest.raises(ValueError, match=words):
            _config(root, tmp_path, **changes)


def test_features_with_control_images_train_all_else_as_without(root: Path) -> None:
    url = str(root / "features" / "aesthetic" / "16")
    with_control, without = FeatureStore.open(url, control=EDGES), FeatureStore.open(url)
    request = [SampleRequest(unit=0, row=row, caption=0) for row in (2, 0)]
    both, plain = with_control.read(request), without.read(request)
    assert plain.control is None and torch.equal(both.mean, plain.mean)
    expected = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(100))[[2, 0]].half()
    assert both.control is not None and torch.equal(both.control, expected)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("traced")
def test_compiled_blocks_train_as_plain_ones(root: Path, tmp_path: Path) -> None:
    quick: dict[str, Any] = {"images": 8, "watch": WatchConfig(every_steps=1, validate_every_images=0, sample_every_images=0)}
    control = replace(CONTROL, blocks=1)  # each kind of block once
    plain, compiled = (_config(root, tmp_path / str(on), control, compile=on, **quick) for on in (False, True))
    assert main(plain) == main(compiled) == 0
    assert training_losses(compiled) == pytest.approx(training_losses(plain), rel=1e-3)


@pytest.mark.slow
def test_a_killed_training_resumes_bit_for_bit(root: Path, tmp_path: Path) -> None:
    control = replace(CONTROL, dropout=0.2)
    unbroken, killed = (_config(root, tmp_path / name / "runs", control, images=40) for name in ("unbroken", "killed"))
    assert main(unbroken) == 0
    train_until_killed(killed, step=6)
    assert main(killed) == 0
    assert have_same_weights(unbroken, killed, FILE) and training_losses(unbroken) == training_losses(killed)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_workers_are_one_within_rounding(root: Path, tmp_path: Path, sharding: Sharding) -> None:
    """One half by two workers, the other by one, which read each other's checkpoints."""
    watch = WatchConfig(every_steps=1, validate_every_images=8, validation_images=7, sample_every_images=0)
    config = _config(root, tmp_path / "together", watch=watch, distributed=DistributedConfig(sharding=sharding))
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
