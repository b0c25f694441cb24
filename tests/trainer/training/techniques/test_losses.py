"""Each technique's loss is what its formula says: per sample, with gradients where they belong, independent of neighbours."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from foundry.errors import UserError
from model.dit_config import DiTConfig
from model.encoders.teacher import Teacher
from model.encoders.vae import VAEConfig, load_vae
from model.encoders.vision_tower import VisionTowerConfig, load_vision_tower
from tests.model.tiny_parts import save_tiny_vae
from tests.trainer.tiny_techniques import save_tiny_teacher
from tests.trainer.tiny_training import tiny_config
from trainer.config.ladder import LadderPosition, Rung
from trainer.config.techniques import DispersiveConfig, LayerSyncConfig, RepaConfig, Sra2Config
from trainer.data.batches import MicroBatch
from trainer.training.techniques.dispersive import Dispersive
from trainer.training.techniques.layersync import LayerSync
from trainer.training.techniques.opening import check_group
from trainer.training.techniques.repa import Repa
from trainer.training.techniques.sra2 import Sra2

NETWORK = DiTConfig(width=24, depth=4, num_heads=2, sample_size=8)
"""A grid of 4 x 4 patches of latents (4, 8, 8)."""


@pytest.fixture
def batch() -> MicroBatch:
    generator = torch.Generator().manual_seed(1)
    latents, noise = (torch.randn(6, 4, 8, 8, generator=generator) for _ in range(2))
    return MicroBatch(latents=latents, noise=noise, timesteps=torch.zeros(6))


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(6, 16, 24, generator=torch.Generator().manual_seed(2)).requires_grad_()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    root = tmp_path_factory.mktemp("teacher")
    tower = load_vision_tower(VisionTowerConfig(name=str(save_tiny_teacher(root / "teacher")), dtype="float32"))
    return Teacher(tower, load_vae(VAEConfig(name=str(save_tiny_vae(root / "vae")), dtype="float32", sliced=False)))


def _position(images: int, *, before: int = 0) -> LadderPosition:
    return LadderPosition(index=0, rung=Rung(resolution=16, images=images, batch_size=1), images_before=before)


def _repa(config: RepaConfig, teacher: Teacher) -> Repa:
    fingerprint = teacher.tower.fingerprint()
    return Repa(config, NETWORK, teacher=teacher, teacher_width=teacher.tower.width, fingerprint=fingerprint)


def test_blocks_are_those_of_the_papers_and_fit_small_networks() -> None:
    layersync = LayerSyncConfig()
    assert [RepaConfig().chosen_block(depth) for depth in (28, 12, 8, 2, 1)] == [8, 3, 2, 1, 1]
    assert [Sra2Config().chosen_block(depth) for depth in (28, 12, 8, 2, 1)] == [8, 2, 1, 1, 1]
    assert [(layersync.chosen_block(depth), layersync.chosen_target(depth)) for depth in (28, 2)] == [(8, 16), (1, 2)]
    assert [DispersiveConfig().chosen_block(depth) for depth in (12, 2)] == [3, 1]
    assert RepaConfig().projector_widths(1152, teacher_width=768) == (1152, 2048, 2048, 768)
    assert RepaConfig().projector_widths(2304, teacher_width=768)[1] == 2048
    assert RepaConfig().projector_widths(144, teacher_width=192)[1] == 256


def test_repa_is_minus_the_mean_cosine_with_what_the_teacher_sees(
    batch: MicroBatch, tokens: torch.Tensor, teacher: Teacher
) -> None:
    technique = _repa(RepaConfig(teacher="-", block=3), teacher)
    technique.initialise(torch.Generator().manual_seed(0))
    found = technique({3: tokens}, batch)
    seen, said = teacher.features(batch.latents, (4, 4)), technique.projector(tokens)
    cosines = (seen * said).sum(2) / (seen.norm(dim=2) * said.norm(dim=2))
    torch.testing.assert_close(found, -cosines.mean(1))
    found.sum().backward()
    assert tokens.grad is not None and tokens.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.tower.model.parameters())
    assert [layer.out_features for layer in technique.projector[::2]] == [43, 43, 16]
    assert set(dict(technique.named_parameters())) == {
        f"projector.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")
    }


def test_what_a_teacher_sees_does_not_depend_on_the_batch(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = torch.randn(3, 4, 8, 16, generator=torch.Generator().manual_seed(3))
    found = teacher.features(latents, (4, 8))
    assert found.shape == (3, 32, 16) and found.dtype == torch.float32
    monkeypatch.setattr("model.encoders.teacher.DECODED_PX", 1)  # one image at once
    torch.testing.assert_close(teacher.features(latents[1:], (4, 8)), found[1:], atol=1e-4, rtol=1e-4)


def test_repa_stops_after_its_share_and_its_images(teacher: Teacher) -> None:
    always = _repa(RepaConfig(teacher="-"), teacher)
    third = _repa(RepaConfig(teacher="-", stop_share=0.3), teacher)
    early = _repa(RepaConfig(teacher="-", stop_images=110), teacher)
    position = _position(100, before=100)
    assert [one.num_images(position) for one in (always, third, early)] == [100, 30, 10]
    assert early.num_images(_position(100, before=200)) == 0 and early.num_images(_position(50)) == 50


def test_sra2_is_smooth_l1_to_the_patch_of_each_token(batch: MicroBatch, tokens: torch.Tensor) -> None:
    technique = Sra2(Sra2Config(enabled=True, beta=0.5), NETWORK)
    (block,) = technique.blocks
    assert len([module for module in technique.modules() if isinstance(module, torch.nn.Linear)]) == 5
    found = technique({block: tokens}, batch)  # all weights are zero: so are the predictions
    sizes = batch.latents.abs()
    expected = torch.where(sizes < 0.5, sizes.square(), sizes - 0.25).flatten(1).mean(1)
    torch.testing.assert_close(found, expected)
    technique.projector = torch.nn.Identity()  # type: ignore[assignment]
    latents, predicted = torch.zeros(1, 4, 8, 8), torch.zeros(1, 16, 16)
    latents[:, :, 2:4, 4:6], predicted[:, 6] = 2, 2  # row 1, column 2 of the grid
    assert float(technique({block: predicted}, replace(batch, latents=latents))) == 0


def test_layersync_pulls_the_early_block_alone(batch: MicroBatch, tokens: torch.Tensor) -> None:
    technique = LayerSync(LayerSyncConfig(enabled=True), NETWORK)
    early, late = technique.blocks
    target = tokens.detach().roll(1, dims=0).requires_grad_()
    found = technique({late: target, early: tokens}, batch)
    cosines = (tokens * target).sum(2) / (tokens.norm(dim=2) * target.norm(dim=2))
    expected = -cosines.mean(1)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert target.grad is None and tokens.grad is not None
    assert not list(technique.parameters())
    assert technique({late: tokens, early: tokens}, batch).tolist() == pytest.approx([-1.0] * 6)


def test_dispersive_is_the_formula_within_each_group(batch: MicroBatch, tokens: torch.Tensor) -> None:
    technique = Dispersive(DispersiveConfig(enabled=True, group=3, temperature=0.7), NETWORK)
    (block,) = technique.blocks
    found = technique({block: tokens}, batch)
    flat = tokens.detach().flatten(1).double()
    for group in (range(3), range(3, 6)):
        terms = [math.exp(-float((flat[i] - flat[j]).square().mean()) / 0.7) for i in group for j in group]
        assert found[list(group)].tolist() == pytest.approx([math.log(sum(terms) / 9)] * 3, rel=1e-5)
    assert torch.equal(technique({block: tokens[3:]}, batch), found[3:])
    far = torch.cat([tokens[:3], 100 + tokens[3:]])  # a common shift is no distance
    torch.testing.assert_close(technique({block: far}, batch), found, atol=1e-3, rtol=1e-3)


def test_a_group_that_does_not_divide_a_workers_batch_is_refused_with_one_that_does(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, batch_size=178 * 64, images=178 * 64, dispersive=DispersiveConfig(enabled=True))
    with pytest.raises(
        UserError, match=r"group of 64 samples does not divide the 178 that a worker trains in a step: .* as 89$"
    ):
        check_group(config, 64)
    check_group(replace(config, dispersive=replace(config.dispersive, group=89)), 64)
    check_group(replace(config, dispersive=DispersiveConfig()), 64)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"repa": RepaConfig(weight=0)}, "repa.weight must be above 0"),
        ({"repa": RepaConfig(stop_share=1.5)}, "repa.stop_share must be above 0 and at most 1"),
        ({"repa": RepaConfig(teacher="")}, "repa.teacher must be a name or a folder"),
        ({"sra2": Sra2Config(beta=0)}, "sra2.beta must be above 0"),
        ({"layersync": LayerSyncConfig(block=3, target=3)}, "layersync.target must be 1 or more, and not block"),
        ({"dispersive": DispersiveConfig(group=1)}, "dispersive.group must be 2 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny_config(tmp_path, **change)


def test_settings_are_recorded_as_json_reads_them(teacher: Teacher) -> None:
    for technique in (
        _repa(RepaConfig(teacher="-"), teacher),
        Sra2(Sra2Config(enabled=True), NETWORK),
        LayerSync(LayerSyncConfig(enabled=True), NETWORK),
        Dispersive(DispersiveConfig(enabled=True), NETWORK),
    ):
        assert json.loads(json.dumps(technique.record)) == technique.record
