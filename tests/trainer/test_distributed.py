"""Two workers train what one trains, within rounding, and read each other's checkpoints; samples, captions encoded online."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dataset_builder.sql.dataset_files import open_stored
from foundry.errors import UserError
from foundry.storage.folder import Folder
from model.formats.checkpoint import PartConfig
from tests.dataset_builder.small_run import SmallRun
from tests.model.tiny_parts import save_tiny_t5, save_tiny_vae, tiny_text_encoder, tiny_vae
from tests.trainer.tiny_training import tiny_config, write_store
from tests.trainer.two_workers import train_together
from trainer.config.data import DataConfig
from trainer.config.ladder import Rung
from trainer.config.network import NetworkConfig
from trainer.config.optim import OptimConfig
from trainer.config.running import DistributedConfig, Sharding, WatchConfig
from trainer.config.train import TrainConfig
from trainer.fit import main
from trainer.monitoring.run_folder import newest_checkpoint, read_metrics


def _metrics(config: TrainConfig, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_metrics(Path(config.run_folder)) if row["kind"] == kind]


def _rows(config: TrainConfig, kind: str) -> dict[int, float]:
    return {row["images_seen"]: row["loss"] for row in _metrics(config, kind)}


def _weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    checkpoint = newest_checkpoint(Path(config.run_folder))
    assert checkpoint is not None
    return load_file(checkpoint / "transformer" / "diffusion_pytorch_model.safetensors")


MUON = OptimConfig(name="muon", lr=1e-3, warmup_steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("optim", [OptimConfig(lr=1e-3, warmup_steps=2), MUON], ids=["adamw", "muon"])
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_workers_are_one_within_rounding(tmp_path: Path, sharding: Sharding, optim: OptimConfig) -> None:
    """The first half by two, the second half by one that reads the checkpoint of two; then the other way round."""
    write_store(tmp_path / "features")
    watch = WatchConfig(every_steps=1, validate_every_images=8, validation_images=7, sample_every_images=0)
    distributed = DistributedConfig(sharding=sharding)
    config = tiny_config(tmp_path, images=16, watch=watch, distributed=distributed, optim=optim)
    alone = replace(config, run_dir=str(tmp_path / "alone"))
    assert main(alone) == 0
    half = (Rung(resolution=16, images=8, batch_size=4),)
    train_together(replace(config, ladder=half))
    assert main(config) == 0
    other = replace(config, run_dir=str(tmp_path / "other"))
    assert main(replace(other, ladder=half)) == 0
    train_together(other)
    for mixed in (config, other):
        for kind in ("train", "validation"):
            assert _rows(mixed, kind) == pytest.approx(_rows(alone, kind), rel=1e-4), kind
        ours, theirs = _weights(mixed), _weights(alone)
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)


@pytest.mark.slow
def test_copies_of_shards_train_what_one_does_and_fewer_workers_resume(tmp_path: Path) -> None:
    """A third by two groups of two, the next by two that share all shards, the last by one; by Muon, which moves matrices."""
    write_store(tmp_path / "features")
    watch = WatchConfig(every_steps=1, validate_every_images=8, validation_images=7, sample_every_images=0)
    config = tiny_config(tmp_path, images=24, batch_size=8, watch=watch, optim=MUON, device_tokens=16)
    alone = replace(config, run_dir=str(tmp_path / "alone"))
    assert main(alone) == 0
    first, second = (replace(config, ladder=(Rung(resolution=16, images=images, batch_size=8),)) for images in (8, 16))
    train_together(replace(first, distributed=DistributedConfig(sharding="hsdp", shard_workers=2)), num_workers=4)
    train_together(replace(second, distributed=DistributedConfig(sharding="fsdp")))
    assert main(config) == 0
    for name in ("loss", "gradient_norm"):
        found, expected = ([row[name] for row in _metrics(one, "train")] for one in (config, alone))
        assert len(found) == 3 and found == pytest.approx(expected, rel=1e-4), name
    assert _rows(config, "validation") == pytest.approx(_rows(alone, "validation"), rel=1e-4)
    ours, theirs = _weights(config), _weights(alone)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)


def test_groups_of_shards_are_those_of_a_node_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert DistributedConfig().num_shards(4) == 1
    assert [DistributedConfig(sharding="fsdp").num_shards(num) for num in (1, 4)] == [1, 4]
    assert DistributedConfig(sharding="hsdp").num_shards(4) == 2
    assert DistributedConfig(sharding="hsdp", shard_workers=4).num_shards(4) == 4
    with pytest.raises(UserError, match="4 workers do not make whole groups of 3: give a divisor of 4"):
        DistributedConfig(sharding="hsdp", shard_workers=3).num_shards(4)
    with pytest.raises(ValueError, match="shard_workers must be left out unless sharding is hsdp"):
        tiny_config(Path("run"), distributed=DistributedConfig(shard_workers=2))


@pytest.mark.slow
def test_two_workers_see_and_record_what_one_does(tmp_path: Path) -> None:
    """Weighed by SQL, which one worker asks for both."""
    run = SmallRun().write(Folder(str(tmp_path / "run"))).url
    write_store(tmp_path / "features", source=run)
    watch = WatchConfig(every_steps=1, validate_every_images=0, sample_every_images=0, record_losses_every_steps=1)
    data = DataConfig(loader_threads=1, weights="SELECT 'u0r' || range AS key, range AS weight FROM range(6)")
    config = tiny_config(tmp_path, images=16, watch=watch, data=data)
    alone = replace(config, run_dir=str(tmp_path / "alone"))
    assert main(alone) == 0
    train_together(config)
    assert _rows(config, "train") == pytest.approx(_rows(alone, "train"), rel=1e-4)
    sql = "SELECT images_seen, key, timestep, round(loss, 3) AS loss FROM losses ORDER BY ALL"
    recorded = []
    for one in (config, alone):
        with open_stored(run, training=one.run_folder) as database:
            recorded.append(database.fetch(sql).to_pylist())
    assert recorded[0] == recorded[1] and len(recorded[0]) == 16


@pytest.mark.slow
def test_shards_of_eight_bits_resume_bit_for_bit_on_as_many_workers(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    write_store(tmp_path / "features")
    optim, network = OptimConfig(name="adamw8bit", lr=1e-3, warmup_steps=2), NetworkConfig(width=96, depth=1, num_heads=2)
    distributed = DistributedConfig(sharding="fsdp")
    unbroken = tiny_config(tmp_path, images=16, distributed=distributed, optim=optim, network=network)
    broken = replace(unbroken, run_dir=str(tmp_path / "broken"))
    train_together(unbroken)
    train_together(replace(broken, ladder=(Rung(resolution=16, images=8, batch_size=4),)))
    with pytest.raises(UserError, match="optimiser adamw8bit sharded among 2 workers then, adamw8bit now"):
        main(broken)
    train_together(broken)
    assert _rows(broken, "train") == _rows(unbroken, "train")
    ours, theirs = _weights(broken), _weights(unbroken)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def _watched(tmp_path: Path, stage: str, **info: Any) -> TrainConfig:
    vae = save_tiny_vae(tmp_path / "vae")
    part = PartConfig(name=str(vae), fingerprint=tiny_vae(vae).fingerprint())
    write_store(tmp_path / "features", stage=stage, vae=part, **info)
    watch = WatchConfig(every_steps=1, validate_every_images=0, sample_every_images=4, sample_steps=2, num_samples=3)
    return tiny_config(tmp_path, stage=stage, images=4, watch=watch)


def test_samples_show_captions_of_the_validation_split(tmp_path: Path) -> None:
    config = _watched(tmp_path, "alignment")
    assert main(config) == 0
    with Image.open(Path(config.run_folder) / "samples" / "000000000004.png") as grid:
        assert "dense 0" in grid.text["texts"] and min(grid.size) >= 256  # type: ignore[attr-defined]


def test_samples_of_the_pixel_stage_show_classes(tmp_path: Path) -> None:
    config = _watched(tmp_path, "pixel")
    assert main(config) == 0
    with Image.open(Path(config.run_folder) / "samples" / "000000000004.png") as grid:
        assert "owl" in grid.text["texts"]  # type: ignore[attr-defined]


def test_samples_show_prompts_of_ones_own(tmp_path: Path) -> None:
    config = _watched(tmp_path, "alignment", **_encoder_facts(tmp_path))
    watch = replace(config.watch, prompts=("a red owl", "a key"))
    assert main(replace(config, watch=watch)) == 0
    with Image.open(Path(config.run_folder) / "samples" / "000000000004.png") as grid:
        texts = grid.text["texts"]  # type: ignore[attr-defined]
        assert "a red owl" in texts and "a key" in texts and "dense" not in texts


def _encoder_facts(tmp_path: Path) -> dict[str, Any]:
    """What a store says whose captions were encoded by a tiny T5."""
    t5 = save_tiny_t5(tmp_path / "t5")
    encoder = tiny_text_encoder(t5)
    part = PartConfig(name=str(t5), fingerprint=encoder.fingerprint())
    sizes = {"caption_width": encoder.width, "max_caption_tokens": 20}
    return {"text_encoder": part, "text_encoder_dtype": "float32", **sizes}


def test_captions_that_are_stored_train_as_captions_that_are_encoded_online(tmp_path: Path) -> None:
    facts = _encoder_facts(tmp_path)
    write_store(tmp_path / "texts", caption_storage="none", **facts)
    write_store(tmp_path / "features", encoder=tiny_text_encoder(tmp_path / "t5"), **facts)
    watch = WatchConfig(every_steps=1, validate_every_images=8, sample_every_images=0, peak_tflops=1.0)
    stored = tiny_config(tmp_path, images=16, watch=watch)
    online = replace(stored, features=str(tmp_path / "texts"), run_dir=str(tmp_path / "online"), online=True)
    assert main(stored) == 0 and main(online) == 0
    assert _rows(stored, "train") == pytest.approx(_rows(online, "train"), rel=1e-4)
    assert len(_rows(stored, "train")) == 4
    operations = [[row["mfu"] / row["overall_images_per_s"] for row in _metrics(one, "train")] for one in (stored, online)]
    assert operations[0] == pytest.approx(operations[1])
