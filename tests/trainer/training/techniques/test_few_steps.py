"""Distillation to few steps: its formulas against closed forms and diffusers, and the promises that every training keeps."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from foundry.errors import UserError
from model.diffusion import CONSISTENCY_STEPS, Diffusion, Objective, RectifiedFlow
from model.dit import Captions, DiT
from model.dit_config import DiTConfig, FewSteps, FewStepsMethod
from model.flops import dit_flops, total
from model.formats.checkpoint import (
    is_adapted,
    load_checkpoint,
    read_own_adapter,
    read_pipeline_config,
)
from tests.trainer.test_distributed import _rows
from tests.trainer.tiny_training import (
    continued_from,
    newest_of,
    newest_weights,
    tiny_config,
    training_losses,
    write_store,
)
from tests.trainer.training.techniques.test_training import _state_tensors
from tests.trainer.two_workers import train_together, train_until_killed
from trainer.config.adaptation import LoraConfig
from trainer.config.data import DataConfig
from trainer.config.ladder import Rung
from trainer.config.network import ObjectiveConfig
from trainer.config.optim import OptimConfig
from trainer.config.running import CheckpointConfig, DistributedConfig, Sharding, WatchConfig
from trainer.config.techniques import FewStepsConfig, Sra2Config
from trainer.config.train import TrainConfig
from trainer.data.batches import MicroBatch, Prediction
from trainer.fit import main
from trainer.planning.techniques import technique_costs
from trainer.stages import AFTER, RECIPES, offered
from trainer.training.techniques.few_steps import Consistency, Distillation, DistillationObjective, Rectification

KEEP = CheckpointConfig(every_images=8, keep_last=9)
FLOW = ObjectiveConfig(name="rectified_flow", settings={"shift": 2.0})
NULL = Captions(tokens=torch.zeros(1, 1), lengths=torch.tensor([1]))
Case = tuple[str, FewStepsMethod]
CASES: list[Case] = [
    ("diffusion", "consistency"),
    ("rectified_flow", "consistency"),
    ("rectified_flow", "rectification"),
]
ALL = pytest.mark.parametrize("case", CASES, ids=" ".join)


class Linear(nn.Module):
    """In place of a network: slope * latents + offset, the offset being that of the caption."""

    def __init__(self, *, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope, dtype=torch.float64))

    def forward(self, latents: Tensor, timesteps: Tensor, *, captions: Captions, **_: object) -> Tensor:
        assert len(timesteps) == len(latents)
        return self.slope * latents + captions.tokens[:, 0].view(-1, 1, 1, 1)


def _batch(num: int = 6) -> MicroBatch:
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, num, 4, 6, 6, generator=generator)
    captions = Captions(tokens=torch.linspace(-1, 1, num)[:, None], lengths=torch.ones(num, dtype=torch.long))
    return MicroBatch(latents=latents, noise=noise, timesteps=torch.zeros(num), captions=captions)


def _objective(
    network: nn.Module, own: Objective, method: type[DistillationObjective], **settings: Any
) -> DistillationObjective:
    kind: Any = "consistency" if method is Consistency else "rectification"
    name: Any = "diffusion" if isinstance(own, Diffusion) else "rectified_flow"
    few_steps = FewStepsConfig(enabled=True, method=kind, **settings)
    config = TrainConfig(
        stage="few_steps",
        ladder=(Rung(resolution=16, images=1, batch_size=1),),
        few_steps=few_steps,
        objective=ObjectiveConfig(name=name),
    )
    return method(own, few_steps, Distillation(network, config), NULL)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_teacher_goes_through_a_window_as_the_guided_flow_does(shift: float) -> None:
    """Against the closed form of dx / dt = slope x + offset; twice the steps leave a quarter of the error."""
    own, batch, network = RectifiedFlow(shift=shift), _batch(), Linear(slope=1.7)
    assert batch.captions is not None
    errors = []
    for steps in (8, 16):
        objective = _objective(network, own, Rectification, guidance_scale=3.0, teacher_steps=steps)
        assert isinstance(objective, Rectification)
        edges = own.levels(4)
        start, end = edges[3].expand(6), edges[2].expand(6)
        found = objective._taught(Prediction(network, batch, torch.float32), batch.latents, start, end)
        offset = 3.0 * batch.captions.tokens[:, 0].view(-1, 1, 1, 1)  # 0 of the null caption, and 3 times away from it
        growth = torch.exp(1.7 * (end - start).double() / 1000).view(-1, 1, 1, 1)
        expected = (batch.latents + offset / 1.7) * growth - offset / 1.7
        errors.append(float((found - expected).abs().max().detach()))
    assert errors[1] < 1e-3 and 3 < errors[0] / errors[1] < 5


def test_rectification_wants_the_mean_velocity_of_a_window_at_all_of_its_times() -> None:
    """A network that says it already has no loss; the share at the start is as asked for, the rest lies between."""
    own, batch, network = RectifiedFlow(shift=2.0), _batch(), Linear(slope=0.0)
    objective = _objective(network, own, Rectification, guidance_scale=1.0, start_share=0.25)
    quantiles = (torch.arange(400) + 0.5) / 400
    timesteps = objective.timesteps_at(quantiles)
    edges = own.levels(4)
    at_start = torch.isin(timesteps, edges)
    assert 0.2 < at_start.float().mean() < 0.3 and timesteps[at_start].unique().tolist() == edges[1:].tolist()
    counts = torch.histogram(timesteps, edges)[0]
    assert timesteps.min() > 0 and timesteps.max() == 1000 and counts.min() > 60
    chosen = objective.timesteps_at(torch.linspace(0.02, 0.98, 6))
    losses = objective.loss(Prediction(network, batch, torch.float32), batch.latents, batch.noise, chosen)
    assert float(losses.total.max()) < 1e-9  # the guided flow is straight: with a scale of 1, the network's own
    guided = _objective(network, own, Rectification, guidance_scale=2.0)
    losses = guided.loss(Prediction(network, batch, torch.float32), batch.latents, batch.noise, chosen)
    assert batch.captions is not None
    torch.testing.assert_close(losses.total, batch.captions.tokens[:, 0].square(), check_dtype=False)  # (2 - 1) offsets away


def test_consistency_takes_the_steps_of_ddim_and_finds_the_images_of_lcm() -> None:
    own, batch, network = Diffusion(learned_variance=False), _batch(), Linear(slope=0.8)
    assert batch.captions is not None
    objective = _objective(network, own, Consistency, guidance_scale=2.5)
    assert isinstance(objective, Consistency)
    timesteps = objective.timesteps_at(torch.linspace(0, 1, 6))
    assert timesteps.tolist()[0] == 19 and timesteps.tolist()[-1] == 999 and bool(((timesteps + 1) % 20 == 0).all())
    settings = own.scheduler_config("lcm")
    lcm = LCMScheduler.from_config(settings)
    lcm.set_timesteps(CONSISTENCY_STEPS)
    assert set(timesteps.tolist()) <= set(lcm.timesteps.tolist()) and len(lcm.timesteps) == CONSISTENCY_STEPS
    ddim = DDIMScheduler.from_config({**settings, "clip_sample": False, "set_alpha_to_one": False})
    ddim.set_timesteps(CONSISTENCY_STEPS)
    predict = Prediction(network, batch, torch.float32)
    noisy = own.add_noise(batch.latents, batch.noise, timesteps)
    guided = objective._guided(predict, noisy, timesteps)
    torch.testing.assert_close(
        guided, 0.8 * noisy + 2.5 * batch.captions.tokens[:, 0].view(-1, 1, 1, 1), check_dtype=False, rtol=1e-5, atol=1e-5
    )
    nearer = own.move(noisy, guided, timesteps, (timesteps - 20).clamp(min=0))
    image = objective._image(predict, noisy, timesteps)
    for row, timestep in enumerate(timesteps.int().tolist()):
        expected = ddim.step(guided[row].float(), timestep, noisy[row]).prev_sample
        torch.testing.assert_close(nearer[row], expected, rtol=1e-4, atol=1e-4)
        lcm._step_index = CONSISTENCY_STEPS - 1
        output = network(noisy, timesteps, captions=batch.captions)[row].float()
        torch.testing.assert_close(image[row], lcm.step(output, timestep, noisy[row]).denoised, rtol=1e-4, atol=1e-4)
    at_zero = objective._image(predict, noisy, torch.zeros(6))
    torch.testing.assert_close(at_zero, noisy, rtol=0, atol=1e-6)  # the boundary condition


class Answer(nn.Module):
    """Leads from everywhere to one image."""

    def __init__(self, own: Objective, answer: Tensor) -> None:
        super().__init__()
        self.own, self.answer = own, nn.Parameter(answer)

    def forward(self, latents: Tensor, timesteps: Tensor, **_: object) -> Tensor:
        signal = self.own.add_noise(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), timesteps)
        noise = self.own.add_noise(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), timesteps)
        rest = latents - signal * self.answer
        return rest / noise if isinstance(self.own, Diffusion) else latents - self.answer + rest / noise - rest


@pytest.mark.parametrize("own", [Diffusion(learned_variance=False), RectifiedFlow(shift=2.0)], ids=["diffusion", "flow"])
def test_a_consistent_network_has_no_loss_and_a_changed_one_has(own: Objective) -> None:
    batch = _batch()
    network = Answer(own, torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(3)))
    objective = _objective(network, own, Consistency)
    timesteps = objective.timesteps_at(torch.linspace(0.1, 1, 6))
    predict = Prediction(network, batch, torch.float32)
    small = objective.loss(predict, batch.latents, batch.noise, timesteps).total
    with torch.no_grad():
        network.answer.add_(1.0)  # the target has the old answer
    large = objective.loss(predict, batch.latents, batch.noise, timesteps).total
    assert float(small.max()) < 0.02 and float(large.min()) > 0.5
    large.sum().backward()
    assert network.answer.grad is not None and bool((network.answer.grad > 0).all())  # back to where it was
    objective.distillation.update()
    target = objective.distillation.target
    assert target is not None
    torch.testing.assert_close(target.weights["answer"], network.answer.detach() - 0.95)
    torch.testing.assert_close(objective.distillation.teacher.weights["answer"], network.answer.detach() - 1.0)


@dataclass(frozen=True)
class Bases:
    """Features, and networks of both objectives that were trained on them."""

    root: Path

    def config(self, run_dir: Path, case: Case, **changes: Any) -> TrainConfig:
        """A distillation of a second."""
        objective, method = case
        settings: dict[str, Any] = {
            "stage": "few_steps",
            "follows": "aesthetic",
            "images": 16,
            "init_from": str(self.root / objective / "aesthetic"),
            "run_dir": str(run_dir),
            # The default eps makes whole steps of gradients that are rounding alone.
            "optim": OptimConfig(lr=1e-2, warmup_steps=1, gradient_clip=1.0, eps=1e-4),
            "checkpoint": KEEP,
            "data": DataConfig(loader_threads=1, caption_dropout=0.0),
            "objective": FLOW if objective == "rectified_flow" else ObjectiveConfig(),
            "few_steps": FewStepsConfig(enabled=True, method=method, teacher_steps=2, guidance_scale=2.0),
            "watch": WatchConfig(every_steps=1, validate_every_images=16, validation_images=8, sample_every_images=0),
        }
        return tiny_config(self.root, **settings | changes)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    root = tmp_path_factory.mktemp("few_steps")
    write_store(root / "features", stage="aesthetic")
    for name, objective in (("diffusion", ObjectiveConfig()), ("rectified_flow", FLOW)):
        assert main(tiny_config(root, stage="aesthetic", images=8, objective=objective, run_dir=str(root / name))) == 0
    return Bases(root)


def _adapter(config: TrainConfig) -> dict[str, Tensor]:
    return load_file(newest_of(config) / "transformer" / "lora.safetensors")


@ALL
@pytest.mark.parametrize("lora", [LoraConfig(), LoraConfig(rank=4)], ids=["whole", "lora"])
def test_a_distillation_resumes_bit_for_bit_and_however_it_is_cut(
    bases: Bases, tmp_path: Path, case: Case, lora: LoraConfig
) -> None:
    objective, method = case
    whole = bases.config(tmp_path / "whole", case, lora=lora)
    assert main(whole) == 0
    resumed = continued_from(whole, tmp_path / "resumed", images_seen=8)
    assert main(resumed) == 0
    after = {seen: loss for seen, loss in training_losses(whole).items() if seen > 8}
    assert training_losses(resumed) == after and len(after) == 2
    ours, theirs = _state_tensors(resumed), _state_tensors(whole)
    assert ours.keys() == theirs.keys() and {"teacher"} <= ours.keys() and ("target" in ours) == (method == "consistency")
    for part, tensors in theirs.items():
        assert all(torch.equal(ours[part][key], tensor) for key, tensor in tensors.items()), part
    assert any(not torch.equal(tensor, theirs["network"][name]) for name, tensor in theirs["teacher"].items())
    if not lora.is_on:
        taught_by = newest_weights(replace(whole, stage="aesthetic", run_dir=str(bases.root / objective)))
        assert all(torch.equal(tensor, taught_by[name]) for name, tensor in theirs["teacher"].items())
    cut = replace(whole, run_dir=str(tmp_path / "cut"), device_tokens=2 * 16, gradient_checkpointing=True)
    assert main(cut) == 0
    assert training_losses(cut) == pytest.approx(training_losses(whole), rel=1e-3)
    (validation,), (same,) = (list(_rows(one, "validation").values()) for one in (whole, resumed))
    assert validation == same > 0


@ALL
def test_a_checkpoint_says_how_it_is_sampled(bases: Bases, tmp_path: Path, case: Case) -> None:
    expected = FewSteps(method=case[1], num_inference_steps=4, guidance_scale=2.0)
    config = bases.config(tmp_path / "lora", case, images=4, lora=LoraConfig(rank=2))
    assert main(config) == 0
    assert is_adapted(newest_of(config)) and read_own_adapter(newest_of(config)).few_steps == expected
    assert read_pipeline_config(newest_of(config)).few_steps == expected
    assert load_checkpoint(newest_of(config))[1].few_steps == expected
    with pytest.raises(UserError, match="is distilled to 4 steps already, and guides itself") as error:
        main(replace(config, run_dir=str(tmp_path / "again"), init_from=config.run_folder))
    assert error.value.setting == "init_from"
    longer = replace(config, ladder=(Rung(resolution=16, images=8, batch_size=4),))
    with pytest.raises(UserError, match=r"is of another training \(.*few_steps.guidance_scale 2.0 then, 3.0 now"):
        main(replace(longer, few_steps=replace(config.few_steps, guidance_scale=3.0)))


def test_what_does_not_fit_is_refused_in_a_line(bases: Bases, tmp_path: Path) -> None:
    config = bases.config(tmp_path, CASES[0])
    for changed, words, setting in [
        (replace(config, init_from="scratch"), "few steps are distilled from a network that is trained already", "init_from"),
        (
            replace(config, init_from=str(bases.root / "rectified_flow" / "aesthetic"), objective=ObjectiveConfig()),
            "objective|learned_variance",
            None,
        ),
        (
            bases.config(tmp_path, CASES[2], objective=ObjectiveConfig(name="rectified_flow")),
            r"has \{name: rectified_flow, settings: \{\}\}: give .*: \{name: rectified_flow, settings: \{shift: 2.0\}\}",
            "objective",
        ),
    ]:
        with pytest.raises(UserError, match=words) as error:
            main(changed)
        assert setting is None or error.value.setting == setting
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"sra2": Sra2Config(enabled=True)}, "few_steps must be off with sra2"),
        ({"few_steps": FewStepsConfig(enabled=True, method="rectification")}, "few_steps.method must be consistency for"),
        ({"few_steps": FewStepsConfig(enabled=True, guidance_scale=0.5)}, "few_steps.guidance_scale must be 1 or more"),
        ({"conditioning": "class"}, "conditioning must be text with few_steps"),
    ]
    for changes, words in wrong:
        with pytest.raises(ValueError, match=words):
            replace(config, **changes)


@ALL
def test_a_plan_counts_the_passes_that_teach(case: Case) -> None:
    """A step costs what the plan of the training says, and that of the teacher and target."""
    objective, method = case
    flow = objective == "rectified_flow"
    network = DiTConfig(width=48, depth=2, num_heads=4, sample_size=8, caption_width=32, learned_variance=not flow)
    own: Objective = RectifiedFlow() if flow else Diffusion()
    kind = Consistency if method == "consistency" else Rectification
    dit = DiT(network).initialise(torch.Generator().manual_seed(0))
    null = Captions(tokens=torch.zeros(1, 32), lengths=torch.tensor([1]))
    objective_of = replace(_objective(dit, own, kind, teacher_steps=3), null_caption=null)
    captions = Captions(tokens=torch.randn(2 * 7, 32), lengths=torch.tensor([7, 7]))
    latents = torch.randn(2, 4, 8, 8)
    batch = MicroBatch(latents=latents, noise=latents, timesteps=torch.zeros(2), captions=captions)
    timesteps = objective_of.timesteps_at(torch.tensor([0.3, 0.8]))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective_of.loss(Prediction(dit, batch, torch.float32), latents, latents, timesteps)
    config = tiny_config(Path(), few_steps=objective_of.config, objective=ObjectiveConfig(name=objective))  # type: ignore[arg-type]
    (cost,) = technique_costs(config, config.ladder[0], network, caption_tokens=7)
    forward = total(dit_flops(network, grid=(4, 4), caption_tokens=7)).forward
    assert counter.get_total_flops() == pytest.approx(2 * (cost.flops_per_image + forward), rel=1e-6)
    parameters = sum(parameter.numel() for parameter in dit.parameters())
    assert cost.copied_parameters == (3 if method == "consistency" else 2) * parameters


def test_the_stage_is_offered_by_every_recipe_and_is_not_one_of_all() -> None:
    for recipe, stages in RECIPES.items():
        config = offered(stages)["few_steps"]()
        assert list(offered(stages)) == [*stages, *AFTER[recipe]] and "few_steps" not in stages
        assert (config.recipe, config.follows, config.features_stage) == (recipe, "aesthetic", "aesthetic")
        assert config.few_steps.is_on and config.data.caption_dropout == 0
        assert config.features_folder(config.ladder[0]) == f"./features/aesthetic/{config.ladder[0].resolution}"


@pytest.mark.slow
def test_a_killed_distillation_resumes_bit_for_bit(bases: Bases, tmp_path: Path) -> None:
    unbroken, killed = (bases.config(tmp_path / name / "runs", CASES[0], images=40) for name in ("unbroken", "killed"))
    assert main(unbroken) == 0
    train_until_killed(killed, step=6)
    assert main(killed) == 0
    ours, theirs = newest_weights(killed), newest_weights(unbroken)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert training_losses(unbroken) == training_losses(killed)


@pytest.mark.slow
@pytest.mark.parametrize(("sharding", "case"), [("ddp", CASES[2]), ("fsdp", CASES[0])])
def test_two_workers_are_one_within_rounding(bases: Bases, tmp_path: Path, sharding: Sharding, case: Case) -> None:
    """One half by one worker, the other by two, which read its checkpoint."""
    changes: dict[str, Any] = {
        "distributed": DistributedConfig(sharding=sharding),
        "optim": OptimConfig(lr=1e-3, warmup_steps=1, gradient_clip=1.0),  # where gradients are 0, Adam steps by rounding
    }
    config = bases.config(tmp_path / "together", case, **changes)
    alone = replace(config, run_dir=str(tmp_path / "alone"))
    assert main(alone) == 0
    assert main(replace(config, ladder=(Rung(resolution=16, images=8, batch_size=4),))) == 0
    train_together(config)
    for kind in ("train", "validation"):
        ours, theirs = _rows(config, kind), _rows(alone, kind)
        shared = ours.keys() & theirs.keys()
        assert shared and {seen: ours[seen] for seen in shared} == pytest.approx(
            {seen: theirs[seen] for seen in shared}, rel=1e-3
        )
    found, expected = newest_weights(config), newest_weights(alone)
    assert all(torch.allclose(found[name], expected[name], atol=1e-3) for name in expected)
