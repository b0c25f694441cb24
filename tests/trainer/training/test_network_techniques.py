"""Text adapter, TREAD and masking in training: exact resume, no trace of cuts and workers, refusals; off, they leave none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from foundry.errors import UserError
from model.dit import DiT
from model.formats.checkpoint import PipelineConfig, load_checkpoint, read_transformer_config, save_checkpoint
from model.layers.text_adapter import AdapterBlock
from tests.model.tiny_networks import random_network
from tests.trainer.test_distributed import _rows
from tests.trainer.tiny_training import (
    CAPTION_WIDTH,
    continued_from,
    newest_weights,
    tiny_config,
    training_losses,
    write_store,
)
from tests.trainer.training.test_loop import _same
from tests.trainer.two_workers import train_together, train_until_killed
from trainer import fit
from trainer.config.ladder import Rung
from trainer.config.network import NetworkConfig
from trainer.config.routing import RoutingConfig
from trainer.config.running import CheckpointConfig, DistributedConfig, Sharding, WatchConfig
from trainer.config.techniques import DispersiveConfig, LayerSyncConfig, Sra2Config
from trainer.config.train import TrainConfig
from trainer.fit import main
from trainer.monitoring.run_folder import CONFIG, newest_checkpoint, read_metrics

KEEP = CheckpointConfig(every_images=8, keep_last=9)
NETWORK = NetworkConfig(width=24, depth=4, num_heads=2)
TREAD = RoutingConfig(kind="tread", blocks_before=1, blocks_after=1, stop_share=0.7, min_tokens=1)
MASKING = RoutingConfig(kind="masking", share=0.7, blocks_before=1, stop_share=0.7, min_tokens=1)
TECHNIQUES: dict[str, dict[str, Any]] = {
    "adapter": {"network": replace(NETWORK, text_adapter_blocks=2)},
    "tread": {"routing": TREAD},
    "masking": {"routing": MASKING, "network": replace(NETWORK, text_adapter_blocks=1)},
}
EACH = pytest.mark.parametrize("name", TECHNIQUES)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("features")
    write_store(root)
    return root


@pytest.fixture(scope="module")
def unbroken(features: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainConfig]:
    """A training with each technique, and one with none."""
    root = tmp_path_factory.mktemp("unbroken")
    configs = {name: _config(features, root / name, **changes) for name, changes in {**TECHNIQUES, "none": {}}.items()}
    for config in configs.values():
        assert main(config) == 0
    return configs


def _config(features: Path, run_dir: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {"network": NETWORK, "checkpoint": KEEP, "images": 24} | changes
    return tiny_config(run_dir, features=str(features), **settings)


@EACH
@pytest.mark.parametrize("images_seen", [8, 16])  # with routing on and, of six steps, behind the last routed one
def test_a_training_resumes_bit_for_bit(unbroken: dict[str, TrainConfig], tmp_path: Path, name: str, images_seen: int) -> None:
    config = unbroken[name]
    resumed = continued_from(config, tmp_path, images_seen=images_seen)
    assert main(resumed) == 0
    after = {seen: loss for seen, loss in training_losses(config).items() if seen > images_seen}
    assert training_losses(resumed) == after and len(after) >= 2
    ours, theirs = newest_weights(resumed), newest_weights(config)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_killed_training_resumes_bit_for_bit(unbroken: dict[str, TrainConfig], tmp_path: Path) -> None:
    name = "masking"  # with an adapter too
    config = replace(unbroken[name], run_dir=str(tmp_path / "runs"))
    assert config.routing.kind == name
    assert fit.run(["--config", str(Path(unbroken[name].run_folder) / CONFIG), "--print_config"]) == 0, (
        "the record is a command's settings"
    )
    train_until_killed(config, step=5)  # the checkpoint before the one of step 4 is whole
    newest = newest_checkpoint(Path(config.run_folder))
    assert newest is not None and 8 <= int(newest.name) < 24
    assert main(config) == 0
    _same(config, unbroken[name])


@EACH
@pytest.mark.parametrize("change", [{"device_tokens": 2 * 16}, {"gradient_checkpointing": True}])
def test_how_a_batch_is_cut_and_what_is_computed_again_change_nothing(
    unbroken: dict[str, TrainConfig], tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    config = replace(unbroken[name], run_dir=str(tmp_path), **change)
    assert main(config) == 0
    assert training_losses(config) == pytest.approx(training_losses(unbroken[name]), rel=1e-4)
    ours, theirs = newest_weights(config), newest_weights(unbroken[name])
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-4) for key in theirs)


def test_each_changes_the_training_and_routing_leaves_the_network_as_it_is(unbroken: dict[str, TrainConfig]) -> None:
    losses = {name: list(training_losses(config).values()) for name, config in unbroken.items()}
    assert losses["adapter"][0] == losses["none"][0] and losses["adapter"] != losses["none"]  # cross-attention starts at zero
    assert losses["masking"][0] != losses["none"][0]  # fewer tokens count
    assert losses["tread"] != losses["none"]
    weights = {name: newest_weights(config) for name, config in unbroken.items()}
    assert weights["tread"].keys() == weights["none"].keys()
    assert {key.split(".")[0] for key in weights["adapter"].keys() - weights["none"].keys()} == {"text_adapter"}
    checkpoint = newest_checkpoint(Path(unbroken["none"].run_folder))
    assert checkpoint is not None and "text_adapter" not in (checkpoint / "transformer" / "config.json").read_text()


def test_routing_stops_in_time_and_at_the_last_resolution(features: Path, tmp_path: Path) -> None:
    write_store(tmp_path / "features")
    write_store(tmp_path / "features", resolution=32)
    ladder = tuple(Rung(resolution=side, images=16, batch_size=4) for side in (16, 32))
    config = tiny_config(tmp_path, network=NETWORK, ladder=ladder, routing=replace(TREAD, stop_share=0.5))
    seen: list[int] = []

    def note(block: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        if block.training:
            seen.append(output.shape[1])

    forward = DiT.forward

    def watched(self: DiT, *arguments: Any, **options: Any) -> torch.Tensor:
        handles = [block.register_forward_hook(note) for block in self.blocks]
        try:
            return forward(self, *arguments, **options)
        finally:
            for handle in handles:
                handle.remove()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiT, "forward", watched)
        assert main(replace(config, watch=replace(config.watch, validate_every_images=0))) == 0
    steps = [seen[start : start + 4] for start in range(0, len(seen), 4)]
    small = [[count, count // 2, count // 2, count] for count in (16, 12)]
    whole = [[count] * 4 for count in (16, 12, 64, 48)]
    assert len(steps) == 8
    assert all(step in small for step in steps[:2]) and all(step in whole for step in steps[2:])
    log = (Path(config.run_folder) / "log.txt").read_text()
    assert "16 px: tread of 50% of the tokens in blocks 2 to 3 for 2 of 4 steps" in log
    assert "32 px: no tread at the last resolution: routing.last_resolution is false" in log
    assert log.count("warning: tread at 16 tokens an image does not pay: leave routing.min_tokens at 1024") == 1
    usual = replace(config, routing=RoutingConfig(kind="tread", blocks_before=1), run_dir=str(tmp_path / "usual"))
    assert main(replace(usual, ladder=ladder[:1])) == 0
    log = (Path(usual.run_folder) / "log.txt").read_text()
    assert "16 px: no tread at 16 tokens an image, where it does not pay: routing.min_tokens is 1024" in log


def test_losses_of_techniques_read_the_tokens_that_the_blocks_saw(features: Path, tmp_path: Path) -> None:
    for block, target in ((2, 3), (1, 2), (3, 4)):
        config = _config(
            features,
            tmp_path / f"{block}",
            routing=replace(TREAD, stop_share=1.0),
            sra2=Sra2Config(enabled=True, block=block),
            layersync=LayerSyncConfig(enabled=True, block=block, target=target),
            images=8,
        )
        assert main(config) == 0
        rows = [row["technique_losses"] for row in read_metrics(Path(config.run_folder)) if row["kind"] == "train"]
        assert len(rows) == 2 and all(set(row) == {"sra2", "layersync"} for row in rows)


def test_a_checkpoint_is_not_resumed_with_other_settings(unbroken: dict[str, TrainConfig], tmp_path: Path) -> None:
    adapted = continued_from(unbroken["adapter"], tmp_path / "adapter", images_seen=8)
    routed = continued_from(unbroken["tread"], tmp_path / "tread", images_seen=8)
    plain = continued_from(unbroken["none"], tmp_path / "none", images_seen=8)
    for config, words in [
        (
            replace(adapted, network=replace(NETWORK, text_adapter_blocks=1)),
            "a text adapter of 2 blocks, the settings ask for 1",
        ),
        (replace(plain, network=replace(NETWORK, text_adapter_blocks=1)), "holds another network than the settings ask for"),
        (replace(routed, routing=RoutingConfig()), "routing on then, off now"),
        (replace(routed, routing=replace(TREAD, share=0.25)), "routing.share 0.5 then, 0.25 now"),
        (replace(plain, routing=TREAD), "routing off then, on now"),
    ]:
        with pytest.raises(UserError, match=words):
            main(config)


def test_a_network_without_an_adapter_gains_one_that_changes_nothing_at_first(features: Path, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"width": 24, "depth": 4, "num_heads": 2, "caption_width": CAPTION_WIDTH, "sample_size": 8}
    source = random_network(**sizes)
    checkpoint = save_checkpoint(tmp_path / "source", source, PipelineConfig(objective="diffusion", resolution=16))
    config = _config(features, tmp_path, init_from=str(checkpoint), network=replace(NETWORK, text_adapter_blocks=1), images=4)
    plain = replace(config, run_dir=str(tmp_path / "plain"), network=NETWORK)
    assert main(config) == 0 and main(plain) == 0
    assert training_losses(config) == training_losses(plain)  # of the one step, before it
    network = load_checkpoint(Path(config.run_folder))[0]
    (block,) = network.text_adapter
    assert isinstance(block, AdapterBlock) and block.attn.proj.weight.any() and block.mlp.proj.weight.any()  # and it learns
    further = replace(config, init_from=str(Path(config.run_folder)), run_dir=str(tmp_path / "further"), network=NETWORK)
    assert main(further) == 0  # a start from it keeps it, unasked
    found = newest_checkpoint(Path(further.run_folder))
    assert found is not None and read_transformer_config(found).text_adapter_blocks == 1


def test_what_cannot_be_routed_is_refused_in_a_line(features: Path, tmp_path: Path) -> None:
    compressed = NetworkConfig(width=24, depth=4, num_heads=2, kv_compression={"layers": [3], "factor": 2})  # type: ignore[arg-type]
    config = _config(features, tmp_path, routing=TREAD)
    for changed, words, setting in [
        (
            replace(config, routing=replace(TREAD, blocks_before=3)),
            "between the first 3 and the last 1, found a depth of 4",
            "",
        ),
        (replace(config, network=compressed), "a network without kv_compression", ""),
        (
            replace(config, dispersive=DispersiveConfig(enabled=True, group=2, block=2)),
            "give it a block up to 1",
            "dispersive.block",
        ),
    ]:
        with pytest.raises(UserError, match=rf"^[^\n]*{words}[^\n]*$") as error:
            main(changed)
        assert error.value.setting == (setting or "routing")
    for routing, words in [
        (replace(TREAD, share=1.0), "routing.share must be above 0 and below 1"),
        (replace(TREAD, blocks_after=0), "routing.blocks_after must be 1 or more for tread"),
        (replace(MASKING, blocks_before=0), "1 or more for masking: they are its patch mixer"),
        (replace(TREAD, stop_share=0.0), "routing.stop_share must be above 0 and at most 1"),
    ]:
        with pytest.raises(ValueError, match=words):
            replace(config, routing=routing)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("traced")
def test_compiled_blocks_do_the_same_with_few_graphs(unbroken: dict[str, TrainConfig], tmp_path: Path) -> None:
    name = "masking"  # with an adapter too
    config = replace(unbroken[name], run_dir=str(tmp_path / "whole"), compile=True)
    assert main(config) == 0
    assert counters["stats"]["unique_graphs"] <= 10, counters["stats"]
    assert not counters["recompile_limit"], counters
    assert training_losses(config) == pytest.approx(training_losses(unbroken[name]), rel=1e-3)
    torch.compiler.reset()
    resumed = continued_from(config, tmp_path / "resumed", images_seen=8)
    assert main(resumed) == 0
    assert training_losses(resumed) == {seen: loss for seen, loss in training_losses(config).items() if seen > 8}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sharding"), [("masking", "fsdp"), ("tread", "ddp")])
def test_two_workers_are_one_within_rounding(features: Path, tmp_path: Path, name: str, sharding: Sharding) -> None:
    watch = WatchConfig(every_steps=1, validate_every_images=0, sample_every_images=0)
    config = _config(
        features, tmp_path, watch=watch, images=16, distributed=DistributedConfig(sharding=sharding), **TECHNIQUES[name]
    )
    alone = replace(config, run_dir=str(tmp_path / "alone"))
    assert main(alone) == 0
    train_together(config)
    assert _rows(config, "train") == pytest.approx(_rows(alone, "train"), rel=1e-4)
    ours, theirs = newest_weights(config), newest_weights(alone)
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-4) for key in theirs)
