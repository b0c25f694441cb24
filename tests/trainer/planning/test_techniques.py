"""The plan of a technique is what it does: operations as torch counts them, its parameters, memory no less than it takes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.dit_config import DiTConfig
from model.encoders.teacher import Teacher
from model.encoders.vae import VAEConfig, load_vae
from model.encoders.vision_tower import VisionTowerConfig, load_vision_tower
from tests.model.real_memory import allocated_peak
from tests.model.tiny_parts import save_tiny_dc, save_tiny_vae
from tests.trainer.tiny_techniques import TECHNIQUES, save_tiny_teacher
from tests.trainer.tiny_training import CAPTION_WIDTH, tiny_config
from trainer.config.ladder import Rung
from trainer.config.routing import RoutingConfig
from trainer.config.techniques import RepaConfig, Sra2Config
from trainer.config.train import TrainConfig
from trainer.data.batches import MicroBatch
from trainer.planning.config import PlanConfig
from trainer.planning.estimate import plan, stage_configs
from trainer.planning.tables.training import plan_table
from trainer.planning.techniques import technique_costs
from trainer.planning.work import added_work, training_work
from trainer.training.techniques.dispersive import Dispersive
from trainer.training.techniques.layersync import LayerSync
from trainer.training.techniques.repa import Repa
from trainer.training.techniques.sra2 import Sra2
from trainer.training.techniques.technique import Technique

NETWORK = DiTConfig(width=48, depth=4, num_heads=4, sample_size=16, caption_width=CAPTION_WIDTH)
BATCH = 6
SMALL = {"ladder": [{"resolution": 64, "images": 6400, "batch_size": 64}], "network": {"width": 48, "depth": 2, "num_heads": 4}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plan")
    save_tiny_vae(root / "vae")
    save_tiny_teacher(root / "teacher")
    return root


def _config(root: Path, name: str) -> TrainConfig:
    settings: dict[str, Any] = {name: TECHNIQUES[name]}
    if name == "repa":
        settings = {"repa": RepaConfig(teacher=str(root / "teacher"), dtype="float32"), "vae": str(root / "vae")}
    return tiny_config(root, **settings)


def _technique(config: TrainConfig, name: str) -> Technique:
    if name == "repa":
        tower = load_vision_tower(VisionTowerConfig(name=config.repa.teacher or "", dtype="float32"))
        vae = load_vae(VAEConfig(name=config.vae or "", dtype="float32", sliced=False))
        teacher = Teacher(tower, vae)
        return Repa(config.repa, NETWORK, teacher=teacher, teacher_width=tower.width, fingerprint=tower.fingerprint())
    others: dict[str, Technique] = {
        "sra2": Sra2(config.sra2, NETWORK),
        "layersync": LayerSync(config.layersync, NETWORK),
        "dispersive": Dispersive(config.dispersive, NETWORK),
    }
    return others[name]


@pytest.mark.parametrize("name", TECHNIQUES)
def test_a_technique_costs_what_the_plan_says(root: Path, name: str) -> None:
    config = _config(root, name)
    technique = _technique(config, name)
    technique.initialise(torch.Generator().manual_seed(0))
    (cost,) = technique_costs(config, config.ladder[0], NETWORK)
    assert (cost.name, cost.parameters) == (name, sum(parameter.numel() for parameter in technique.parameters()))
    latents = torch.randn(BATCH, 4, 16, 16)
    batch = MicroBatch(latents=latents, noise=latents, timesteps=torch.zeros(BATCH))
    outputs = {block: torch.randn(BATCH, 64, 48).requires_grad_() for block in technique.blocks}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # which counts no fused kernel of CPUs
        technique(outputs, batch).sum().backward()
    assert counter.get_total_flops() == pytest.approx(BATCH * cost.flops_per_image, rel=1e-6)
    for output in outputs.values():
        output.grad = None
    peak = allocated_peak(lambda: technique(outputs, batch).sum().backward())
    assert peak <= BATCH * cost.activations_per_image + cost.frozen_bytes
    assert cost.frozen_bytes or BATCH * cost.activations_per_image <= 1.5 * peak


def test_repa_costs_nothing_behind_its_stop(root: Path) -> None:
    ladder = tuple(Rung(resolution=side, images=100, batch_size=10) for side in (16, 32, 64))
    cases: list[tuple[dict[str, Any], list[float]]] = [
        ({"stop_share": 0.3}, [0.3, 0.3, 0.3]),
        ({"stop_images": 150}, [1.0, 0.5, 0.0]),
        ({"stop_share": 0.3, "stop_images": 110}, [0.3, 0.1, 0.0]),
    ]
    for stop, shares in cases:
        repa = RepaConfig(teacher=str(root / "teacher"), **stop)
        config = tiny_config(root, ladder=ladder, repa=repa, vae=str(root / "vae"))
        costs = [technique_costs(config, rung, NETWORK)[0] for rung in ladder]
        assert [cost.share for cost in costs] == pytest.approx(shares)
        assert [cost.mean_flops > 0 and cost.frozen_bytes > 0 for cost in costs] == [share > 0 for share in shares]


def test_stored_features_cost_disk_and_the_projector_alone(root: Path, tmp_path: Path) -> None:
    online = _config(root, "repa")
    stored = replace(online, repa=replace(online.repa, teacher="stored"))
    (cost,), (other,) = (technique_costs(one, one.ladder[0], NETWORK, stored_width=16) for one in (stored, online))
    assert (cost.frozen_bytes, cost.parameters) == (0.0, other.parameters)
    assert 0 < cost.flops_per_image < other.flops_per_image
    path = tmp_path / "fit.yaml"
    path.write_text(json.dumps(SMALL | {"repa": {"teacher": "stored"}}))
    config = PlanConfig(stage="alignment", num_gpus=4, fit_config=str(path), num_images=1_000_000)
    (rung,) = plan(config)
    assert rung.techniques[0].stored_bytes == 2 * 4 * 4 * 768  # float16, 4 x 4 cells, DINOv2-B
    table = plan_table([rung], config)
    (row,) = [line for line in table.splitlines() if line.split()[2:3] == ["repa"]]
    assert row.split()[-1] == "24.6"
    stored_bytes = rung.disk.latents + 1_000_000 * rung.techniques[0].stored_bytes
    whole = (stored_bytes + rung.disk.captions_bf16) / 1e9
    assert f"In all {whole:,.0f} with bf16" in table and ", 24.6 of a teacher among them" in table


def test_a_teacher_reads_what_any_of_the_autoencoders_decodes(root: Path, tmp_path: Path) -> None:
    """AutoencoderDC names its blocks otherwise than AutoencoderKL."""
    path = save_tiny_dc(tmp_path / "dc")
    vae = load_vae(VAEConfig(name=str(path), dtype="float32"))
    network = replace(NETWORK, in_channels=vae.latent_channels, sample_size=4, patch_size=1)
    config = tiny_config(root, repa=RepaConfig(teacher=str(root / "teacher"), dtype="float32"), vae=str(path))
    (cost,) = technique_costs(config, config.ladder[0], network)
    tower = load_vision_tower(VisionTowerConfig(name=str(root / "teacher"), dtype="float32"))
    technique = Repa(
        config.repa, network, teacher=Teacher(tower, vae), teacher_width=tower.width, fingerprint=tower.fingerprint()
    )
    latents = torch.randn(1, vae.latent_channels, 4, 4)
    batch = MicroBatch(latents=latents, noise=latents, timesteps=torch.zeros(1))
    outputs = {block: torch.randn(1, 16, 48).requires_grad_() for block in technique.blocks}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        technique(outputs, batch).sum().backward()
    assert counter.get_total_flops() == pytest.approx(cost.flops_per_image, rel=1e-6)


def test_the_work_of_a_training_is_the_plans(root: Path, tmp_path: Path) -> None:
    settings = {
        "network": {"width": 48, "depth": 5, "num_heads": 4},
        "repa": {"teacher": str(root / "teacher"), "stop_share": 0.3},
        "vae": str(root / "vae"),
        "sra2": {"enabled": True},
        "optim": {"name": "muon"},
        "routing": {"kind": "tread", "min_tokens": 1},
    }
    path = tmp_path / "fit.yaml"
    path.write_text(json.dumps(SMALL | settings))
    config = PlanConfig(stage="alignment", num_gpus=1, fit_config=str(path), caption_width=32, caption_tokens=20)
    (rung,) = plan(config)
    (train,) = stage_configs(config)
    network = train.network.dit_config(
        conditioning="text", sample_size=8, in_channels=4, learned_variance=True, caption_width=32
    )
    work = training_work(train, train.ladder[0], network, caption_tokens=20)
    assert work.flops() == pytest.approx(rung.flops)
    added = added_work(train, train.ladder[0], network)
    plain = added.flops([], num_images=64)
    assert added.flops(["repa", "sra2"], num_images=64) - plain == pytest.approx(
        64 * sum(cost.flops_per_image for cost in rung.techniques)
    )
    assert plain == rung.optimizer_flops > 0
    early, late = work.flops(640) / 640, (work.flops() - work.flops(5760)) / 640  # with the teacher, routed; with neither
    assert early - late == pytest.approx(work.techniques[0].flops_per_image - (work.image - work.routed_image))


def test_a_plan_has_the_techniques_in_its_days_and_its_memory(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "fit.yaml"
    path.write_text(json.dumps(SMALL))
    (plain,) = plan(PlanConfig(stage="alignment", num_gpus=4, fit_config=str(path)))
    assert plain.techniques == () and "techniques" not in plan_table([plain], PlanConfig(stage="alignment", num_gpus=4))
    techniques = {"repa": {"teacher": str(root / "teacher")}, "sra2": {"enabled": True}, "vae": str(root / "vae")}
    path.write_text(json.dumps(SMALL | techniques))
    config = PlanConfig(stage="alignment", num_gpus=4, fit_config=str(path))
    (rung,) = plan(config)
    assert [cost.name for cost in rung.techniques] == ["repa", "sra2"]
    more = sum(cost.flops_per_image for cost in rung.techniques)
    assert rung.gpu_days / plain.gpu_days == pytest.approx(1 + more / plain.flops_per_image)
    assert rung.flops == pytest.approx(plain.flops + rung.images_seen * more)
    for ours, theirs in zip(rung.memory, plain.memory, strict=True):
        shared_by = 4 if ours.sharding == "fsdp" else 1
        fixed = sum(cost.fixed_bytes(shared_by=shared_by) for cost in rung.techniques)
        images = sum(cost.activations_per_image for cost in rung.techniques)
        assert ours.memory.total(2) - theirs.memory.total(2) == pytest.approx(fixed + 2 * images)
    table = plan_table([rung], config)
    assert [line.split()[2] for line in table.splitlines() if line.startswith("alignment")][1:3] == ["repa", "sra2"]


def test_projectors_are_counted_on_the_tokens_that_their_block_sees() -> None:
    """16 tokens, 8 of them routed past blocks 2 and 3 of 4 for the first 32 of 40 images; the others see all."""
    config = tiny_config(
        Path(), routing=RoutingConfig(kind="tread", blocks_before=1, blocks_after=1, min_tokens=1, stop_share=0.8)
    )
    network = replace(NETWORK, sample_size=8)

    def tokens(**settings: Any) -> float:
        """Of the mean image, in units of the operations that one token takes."""
        routed, plain = (replace(one, **settings) for one in (config, tiny_config(Path())))
        (found,), (whole,) = (technique_costs(one, one.ladder[0], network, stored_width=24) for one in (routed, plain))
        return 16 * found.mean_flops / whole.mean_flops

    assert tokens(sra2=Sra2Config(enabled=True, block=1)) == 16
    assert tokens(sra2=Sra2Config(enabled=True, block=2)) == pytest.approx(0.8 * 8 + 0.2 * 16)
    assert tokens(sra2=Sra2Config(enabled=True, block=3)) == pytest.approx(0.8 * 8 + 0.2 * 16)
    assert tokens(sra2=Sra2Config(enabled=True, block=4)) == 16
    assert tokens(repa=RepaConfig(teacher="stored", block=2, stop_share=0.5)) == pytest.approx(8)
    assert tokens(repa=RepaConfig(teacher="stored", block=2)) == pytest.approx(0.8 * 8 + 0.2 * 16)
