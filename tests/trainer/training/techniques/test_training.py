"""Trainings with techniques resume bit for bit, do not depend on how a batch is cut or shared, and export the network alone."""

import math
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from foundry.errors import UserError
from model.diffusion import Diffusion
from model.dit import Captions, HiddenStates
from model.formats.checkpoint import read_transformer_config
from tests.trainer.test_distributed import _rows
from tests.trainer.tiny_techniques import TECHNIQUES, save_tiny_teacher, technique_config, write_features
from tests.trainer.tiny_training import continued_from, newest_weights, training_losses
from tests.trainer.training.test_loop import _same
from tests.trainer.two_workers import train_together, train_until_killed
from trainer import fit
from trainer.config.ladder import Rung
from trainer.config.optim import OptimConfig
from trainer.config.running import CheckpointConfig, DistributedConfig, Sharding, WatchConfig
from trainer.config.techniques import DispersiveConfig, Sra2Config
from trainer.config.train import TrainConfig
from trainer.data.batches import MicroBatch
from trainer.distributed import Workers
from trainer.features.store import SampleRequest
from trainer.fit import main
from trainer.monitoring.run_folder import CONFIG, LOG, newest_checkpoint, read_metrics
from trainer.planning.optimizer import optimizer_cost
from trainer.planning.techniques import technique_costs
from trainer.training.checkpoints import Position, training_tensors
from trainer.training.networks import open_features
from trainer.training.start import find_start, open_state
from trainer.training.train_step import StepSettings, train_step

KEEP = CheckpointConfig(every_images=8, keep_last=9)
EACH = pytest.mark.parametrize("name", TECHNIQUES)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("techniques")
    write_features(root)
    return root


@pytest.fixture(scope="module")
def unbroken(root: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """All techniques at once."""
    config = technique_config(root, tmp_path_factory.mktemp("unbroken"), *TECHNIQUES, images=24, checkpoint=KEEP)
    assert main(config) == 0
    return config


def _technique_losses(config: TrainConfig) -> list[dict[str, float]]:
    return [row.get("technique_losses", {}) for row in read_metrics(Path(config.run_folder)) if row["kind"] == "train"]


def _state_tensors(config: TrainConfig) -> dict[str, dict[str, torch.Tensor]]:
    """All tensors of a run's newest checkpoint."""
    store = open_features(config, config.ladder[0])
    state = open_state(config, find_start(config), rung=config.ladder[0], store=store, workers=Workers())
    return training_tensors(state)


@EACH
def test_a_training_resumes_bit_for_bit(root: Path, tmp_path: Path, name: str) -> None:
    config = technique_config(root, tmp_path / "whole", name, images=16, checkpoint=KEEP)
    assert main(config) == 0
    resumed = continued_from(config, tmp_path / "resumed", images_seen=8)
    assert main(resumed) == 0
    after = {seen: loss for seen, loss in training_losses(config).items() if seen > 8}
    assert training_losses(resumed) == after and len(after) == 2
    assert _technique_losses(resumed) == _technique_losses(config)[2:] and all(_technique_losses(config))
    ours, theirs = _state_tensors(resumed), _state_tensors(config)
    assert ours.keys() == theirs.keys() and (f"{name}.weights" in ours) == (name in ("repa", "sra2"))
    for part, tensors in theirs.items():
        assert all(torch.equal(ours[part][key], tensor) for key, tensor in tensors.items()), part


def test_a_killed_training_with_all_techniques_resumes_bit_for_bit(root: Path, unbroken: TrainConfig, tmp_path: Path) -> None:
    config = replace(unbroken, run_dir=str(tmp_path / "runs"))
    assert fit.run(["--config", str(Path(unbroken.run_folder) / CONFIG), "--print_config"]) == 0, (
        "the record is a command's settings"
    )
    train_until_killed(config, step=5)  # the checkpoint before the one of step 4 is whole
    (line,) = [line for line in (Path(config.run_folder) / LOG).read_text().splitlines() if "step 4 " in line]
    assert "  repa -" in line and "  sra2 " in line
    newest = newest_checkpoint(Path(config.run_folder))
    assert newest is not None and 8 <= int(newest.name) < 24
    assert main(config) == 0
    _same(config, unbroken)
    assert _technique_losses(config) == _technique_losses(unbroken)


def test_techniques_change_the_training_and_not_what_is_exported(root: Path, unbroken: TrainConfig, tmp_path: Path) -> None:
    plain = technique_config(root, tmp_path, images=24, checkpoint=KEEP)
    assert main(plain) == 0
    ours, theirs = newest_weights(unbroken), newest_weights(plain)
    assert ours.keys() == theirs.keys() and not all(torch.equal(ours[name], theirs[name]) for name in ours)
    first = [next(iter(training_losses(config).values())) for config in (unbroken, plain)]
    assert first[0] == first[1]  # the objective's alone, before any step
    state, average = _state_tensors(unbroken)["network"], _state_tensors(unbroken)["ema"]
    assert set(average) <= set(state) and set(average) <= set(ours)
    checkpoint = newest_checkpoint(Path(unbroken.run_folder))
    assert checkpoint is not None and set(Position.read(checkpoint).techniques) == set(TECHNIQUES)


def test_a_step_follows_the_gradient_of_the_weighted_sum_of_losses(root: Path, tmp_path: Path) -> None:
    config = technique_config(root, tmp_path, "sra2", "layersync", sra2=Sra2Config(enabled=True, weight=3.0))
    store = open_features(config, config.ladder[0])
    state = open_state(config, find_start(config), rung=config.ladder[0], store=store, workers=Workers())
    names = [f"{number}" for number in range(len(state.parameters()))]
    before = {name: parameter.detach().clone() for name, parameter in zip(names, state.parameters(), strict=True)}
    latents, noise = (torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    batch = store.read([SampleRequest(unit=0, row=row, caption=0) for row in range(4)])
    assert isinstance(batch.captions, Captions)
    part = MicroBatch(latents=latents, noise=noise, timesteps=torch.tensor([9.0, 300.0, 600.0, 990.0]), captions=batch.captions)
    hidden = HiddenStates(frozenset({1, 2}))
    losses = Diffusion().loss(part.predict(state.network, torch.float32, hidden), latents, noise, part.timesteps).total
    sra2, layersync = (shared.loss(hidden.outputs, part, torch.float32) for shared in state.techniques)
    gradients = torch.autograd.grad((losses + 3.0 * sra2 + 0.2 * layersync).mean(), state.parameters(), allow_unused=True)
    state.optimizer = torch.optim.SGD(state.parameters(), lr=0.1)
    settings = StepSettings(
        lr=0.1, ema_decay=0.5, gradient_clip=1e9, precision=torch.float32, num_samples=4, techniques=state.techniques
    )
    result = train_step(state, Diffusion(), [part], settings)
    for name, parameter, gradient in zip(names, state.parameters(), gradients, strict=True):
        expected = before[name] - 0.1 * (0.0 if gradient is None else gradient)
        torch.testing.assert_close(parameter.detach(), expected, atol=1e-6, rtol=1e-5)
    assert any(float(gradient.abs().max()) > 0 for gradient in gradients[-10:] if gradient is not None)  # the projector's
    torch.testing.assert_close(result.losses, losses.detach())
    assert torch.equal(result.technique_losses["sra2"], sra2.detach())


def test_projectors_learn_and_have_moments(unbroken: TrainConfig) -> None:
    tensors = _state_tensors(unbroken)
    fresh = _state_tensors(replace(unbroken, run_dir=f"{unbroken.run_dir}/none"))
    for name in ("repa", "sra2"):
        before, after = fresh[f"{name}.weights"], tensors[f"{name}.weights"]
        assert before.keys() == after.keys() and not any(torch.equal(before[key], after[key]) for key in before)
        assert all(float(tensor.abs().max()) > 0 for tensor in tensors[f"{name}.optimizer"].values())


@pytest.mark.parametrize("change", [{"device_tokens": 2 * 16}, {"gradient_checkpointing": True}])
def test_how_a_batch_is_cut_and_what_is_computed_again_change_nothing(
    unbroken: TrainConfig, tmp_path: Path, change: dict[str, Any]
) -> None:
    config = replace(unbroken, run_dir=str(tmp_path), **change)
    assert main(config) == 0
    assert training_losses(config) == pytest.approx(training_losses(unbroken), rel=1e-4)
    for ours, theirs in zip(_technique_losses(config), _technique_losses(unbroken), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_a_teacher_that_stopped_is_asked_no_more_and_its_projector_stays(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = technique_config(root, tmp_path / "whole", "repa", images=16, checkpoint=KEEP)
    config = replace(config, repa=replace(config.repa, stop_share=0.5))
    assert main(config) == 0
    assert [sorted(own) for own in _technique_losses(config)] == [["repa"], ["repa"], [], []]
    resumed = continued_from(config, tmp_path / "resumed", images_seen=8)

    def asked(*_arguments: object) -> None:
        raise AssertionError("the teacher has stopped")

    monkeypatch.setattr("model.encoders.teacher.Teacher.features", asked)
    assert main(resumed) == 0
    ours, theirs = _state_tensors(resumed), _state_tensors(config)
    for part in ("network", "repa.weights", "repa.optimizer"):
        assert all(torch.equal(ours[part][key], tensor) for key, tensor in theirs[part].items()), part


def test_a_checkpoint_is_not_resumed_with_other_techniques(root: Path, unbroken: TrainConfig, tmp_path: Path) -> None:
    other = save_tiny_teacher(tmp_path / "other", seed=1)
    config = continued_from(unbroken, tmp_path / "runs", images_seen=8)
    for changed, words in [
        (replace(config, sra2=Sra2Config()), "sra2 on then, off now"),
        (replace(config, dispersive=DispersiveConfig(enabled=True, group=4)), "dispersive.group 2 then, 4 now"),
        (replace(config, repa=replace(config.repa, weight=0.25)), "repa.weight 0.5 then, 0.25 now"),
        (replace(config, repa=replace(config.repa, teacher=str(other))), r"repa.teacher \w{16} then, \w{16} now"),
    ]:
        with pytest.raises(UserError, match=rf"is of another training \({words}\)"):
            main(changed)
    plain = technique_config(root, tmp_path / "plain", images=8)
    assert main(plain) == 0
    with pytest.raises(UserError, match="layersync off then, on now"):
        main(technique_config(root, tmp_path / "plain", "layersync", images=16))
    moved = shutil.copytree(config.repa.teacher or "", tmp_path / "moved")
    assert main(replace(config, repa=replace(config.repa, teacher=str(moved)))) == 0


def test_what_techniques_cannot_read_is_refused_in_a_line(root: Path, tmp_path: Path) -> None:
    config = technique_config(root, tmp_path, *TECHNIQUES, images=8)
    for changed, words, setting in [
        (replace(config, repa=replace(config.repa, block=3)), "repa reads block 3, and the network has 2", "repa.block"),
        (replace(config, repa=replace(config.repa, teacher="nowhere")), "there is no vision tower in nowhere", ""),
        (
            replace(config, dispersive=DispersiveConfig(enabled=True, group=3)),
            "group of 3 samples does not",
            "dispersive.group",
        ),
        (replace(config, device_tokens=16), "more than the 16 patches of device_tokens: give 32", "dispersive.group"),
    ]:
        with pytest.raises(UserError, match=rf"^[^\n]*{words}[^\n]*$") as error:
            main(changed)
        assert error.value.setting == setting


@pytest.mark.parametrize(
    ("stage", "precision", "resolutions"),
    [("pixel", "float32", (16,)), ("alignment", "bfloat16", (16,)), ("alignment", "float32", (16, 32))],
)
def test_techniques_work_in_each_stage_number_format_and_resolution(
    tmp_path: Path, stage: str, precision: str, resolutions: tuple[int, ...]
) -> None:
    for resolution in resolutions:
        write_features(tmp_path, stage=stage, resolution=resolution)
    ladder = tuple(Rung(resolution=resolution, images=8, batch_size=4) for resolution in resolutions)
    config = technique_config(tmp_path, tmp_path, *TECHNIQUES, stage=stage, precision=precision, ladder=ladder)
    assert main(config) == 0
    losses = _technique_losses(config)
    assert len(losses) == 2 * len(ladder) and all(own.keys() == TECHNIQUES.keys() for own in losses)
    assert all(math.isfinite(loss) for own in losses for loss in own.values())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("traced")
def test_compiled_blocks_hand_out_what_plain_ones_do(unbroken: TrainConfig, tmp_path: Path) -> None:
    config = replace(unbroken, run_dir=str(tmp_path / "whole"), compile=True)
    assert main(config) == 0
    assert counters["stats"]["unique_graphs"] <= 6, counters["stats"]
    assert training_losses(config) == pytest.approx(training_losses(unbroken), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_workers_are_one_within_rounding(root: Path, tmp_path: Path, sharding: Sharding) -> None:
    """One half by two workers and the other by one, which read each other's checkpoints: DDP first, FSDP2 last."""
    config = technique_config(root, tmp_path, *TECHNIQUES, images=16, distributed=DistributedConfig(sharding=sharding))
    config = replace(config, repa=replace(config.repa, stop_images=12))
    alone = replace(config, run_dir=str(tmp_path / "alone"))
    assert main(alone) == 0
    half = replace(config, ladder=(Rung(resolution=16, images=8, batch_size=4),))
    if sharding == "ddp":
        train_together(half)
        assert main(config) == 0
    else:
        assert main(half) == 0
        train_together(config)
    assert _rows(config, "train") == pytest.approx(_rows(alone, "train"), rel=1e-4)
    for ours, theirs in zip(_technique_losses(config), _technique_losses(alone), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    found, expected = _state_tensors(config), _state_tensors(alone)
    for part, tensors in expected.items():
        assert all(torch.allclose(found[part][key], tensor, atol=1e-4) for key, tensor in tensors.items()), part


def test_the_utilisation_in_the_log_counts_techniques_and_the_optimiser(root: Path, tmp_path: Path) -> None:
    watch = WatchConfig(every_steps=1, validate_every_images=0, sample_every_images=0, peak_tflops=1e-3)
    optim = OptimConfig(name="muon", warmup_steps=2)
    plain, with_muon, with_all = (
        technique_config(root, tmp_path / folder, *names, images=8, watch=watch, optim=settings)
        for folder, names, settings in (
            ("plain", (), OptimConfig(warmup_steps=2)),
            ("muon", (), optim),
            ("all", ("repa", "sra2"), optim),
        )
    )
    flops = []
    for config in (plain, with_muon, with_all):
        assert main(config) == 0
        rows = read_metrics(Path(config.run_folder))
        flops.append([1e9 * row["mfu"] / row["overall_images_per_s"] for row in rows if row["kind"] == "train"])  # of an image
    checkpoint = newest_checkpoint(Path(plain.run_folder))
    assert checkpoint is not None
    network = read_transformer_config(checkpoint)
    costs = technique_costs(replace(with_all, vae=str(root / "vae")), plain.ladder[0], network)
    expected = [optimizer_cost(network, optim).step_flops / 4, sum(cost.flops_per_image for cost in costs)]
    for more, (without, included) in zip(expected, pairwise(flops), strict=True):
        assert more > 0
        assert [after - before for before, after in zip(without, included, strict=True)] == pytest.approx([more, more])
