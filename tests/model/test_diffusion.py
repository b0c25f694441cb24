"""The objectives against independent derivations and diffusers' schedulers; fixed validation noise."""

import math

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from model.diffusion import Diffusion, ModelFn, Objective, RectifiedFlow, make_objective, validation_loss, validation_noise

TIMESTEPS = torch.tensor([0.0, 1.0, 500.0, 999.0])


def _draw(seed: int, channels: int = 4) -> Tensor:
    return torch.randn(4, channels, 6, 5, generator=torch.Generator().manual_seed(seed))


def _constant(prediction: Tensor) -> ModelFn:
    return lambda _noisy, _timesteps: prediction


def test_noisy_latents_equal_those_of_ddpm() -> None:
    latents, noise = _draw(0), _draw(1)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    expected = scheduler.add_noise(latents, noise, TIMESTEPS.long())
    torch.testing.assert_close(Diffusion().add_noise(latents, noise, TIMESTEPS), expected, rtol=1e-4, atol=1e-5)


def test_the_bound_is_the_divergence_of_the_gaussians() -> None:
    """From Bayes' rule in float64: q(x_s | x_t, x_0) is proportional to q(x_t | x_s) q(x_s | x_0), both Gaussian."""
    latents, noise = 0.3 * _draw(0), _draw(1)
    prediction = torch.cat([noise + 0.1 * _draw(2), _draw(3).tanh()], dim=1)
    losses = Diffusion().loss(_constant(prediction), latents, noise, TIMESTEPS)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    left = (1 - betas).cumprod(0)
    for sample, step in enumerate(TIMESTEPS.long().tolist()):
        x0, epsilon = latents[sample].double(), noise[sample].double()
        xt = left[step].sqrt() * x0 + (1 - left[step]).sqrt() * epsilon
        guess, share = prediction[sample].double().split(4)
        x0_guess = (xt - (1 - left[step]).sqrt() * guess) / left[step].sqrt()
        share = (share + 1) / 2

        def posterior(start: Tensor, step: int = step, xt: Tensor = xt) -> Normal:
            before = left[step - 1] if step else torch.tensor(1.0, dtype=torch.float64)
            if step == 0:
                return Normal(start, betas[1] ** 0.5)  # its true variance is 0
            precision = (1 - betas[step]) / betas[step] + 1 / (1 - before)
            mean = ((1 - betas[step]).sqrt() / betas[step] * xt + before.sqrt() / (1 - before) * start) / precision
            return Normal(mean, precision**-0.5)

        smallest = posterior(x0, max(step, 1)).scale.square()
        variance = betas[step] ** share * smallest ** (1 - share)
        step_taken = Normal(posterior(x0_guess).mean, variance.sqrt())
        if step:
            nats = kl_divergence(posterior(x0), step_taken).mean()
        else:
            edges = (step_taken.cdf(x0 + 1 / 255), step_taken.cdf(x0 - 1 / 255))
            upper = torch.where(x0 > 0.999, 1.0, edges[0])
            lower = torch.where(x0 < -0.999, 0.0, edges[1])
            nats = -(upper - lower).clamp(min=1e-12).log().mean()
        assert losses.parts["bound"][sample].item() == pytest.approx(nats.item() / math.log(2), rel=2e-3, abs=1e-6), step
    torch.testing.assert_close(losses.total, losses.parts["mse"] + losses.parts["bound"])


def test_the_bound_trains_the_variance_alone() -> None:
    prediction = _draw(2, channels=8).requires_grad_()
    losses = Diffusion().loss(_constant(prediction), _draw(0), _draw(1), TIMESTEPS)
    (gradient,) = torch.autograd.grad(losses.parts["bound"].sum(), prediction)
    assert not gradient[:, :4].any() and gradient[:, 4:].any()


def test_a_perfect_network_has_no_squared_error() -> None:
    latents, noise = _draw(0), _draw(1)
    perfect = torch.cat([noise, -torch.ones_like(noise)], dim=1)
    parts = Diffusion().loss(_constant(perfect), latents, noise, TIMESTEPS).parts
    assert not parts["mse"].any() and parts["bound"][1:].abs().max() < 1e-3
    assert not RectifiedFlow().loss(_constant(noise - latents), latents, noise, TIMESTEPS).total.any()


def test_timesteps_are_drawn_as_promised() -> None:
    generator = torch.Generator().manual_seed(0)
    uniform = Diffusion().sample_timesteps(200_000, generator=generator)
    assert torch.equal(uniform, uniform.round()) and uniform.min() == 0 and uniform.max() == 999
    assert uniform.mean().item() == pytest.approx(499.5, abs=3)
    normal = torch.logit(RectifiedFlow(mean=0.5, std=2.0).sample_timesteps(200_000, generator=generator).double() / 1000)
    assert normal.mean().item() == pytest.approx(0.5, abs=0.02) and normal.std().item() == pytest.approx(2.0, abs=0.02)
    shifted = RectifiedFlow(shift=3.0).timesteps_at(torch.tensor([0.5]))
    assert shifted.item() == pytest.approx(750)


@pytest.mark.parametrize("objective", [Diffusion(learned_variance=False), RectifiedFlow()], ids=["diffusion", "flow"])
def test_the_scheduler_finds_the_way_back(objective: Objective) -> None:
    """With the exact prediction for one known image, sampling returns it: signs, scales and times of both sides agree."""
    latents = _draw(0).clamp(-1, 1)
    scheduler = DPMSolverMultistepScheduler.from_config(objective.scheduler_config("dpm-solver++"))
    scheduler.set_timesteps(20)
    x = _draw(1)
    for timestep in scheduler.timesteps:
        times = timestep.float().expand(4)
        ends = [objective.add_noise(part, other, times) for part, other in ((latents, 0 * x), (0 * x, torch.ones_like(x)))]
        noise = (x - ends[0]) / ends[1]
        prediction = noise if isinstance(objective, Diffusion) else noise - latents
        x = scheduler.step(prediction, timestep, x).prev_sample
    torch.testing.assert_close(x, latents, rtol=0, atol=5e-3)


def test_training_can_use_what_an_evaluation_in_inference_mode_made() -> None:
    objective = Diffusion(beta_end=0.0123)  # no other test has made its tables
    with torch.inference_mode():
        objective.add_noise(_draw(0), _draw(1), TIMESTEPS)
    latents = _draw(0).requires_grad_()
    objective.add_noise(latents, _draw(1), TIMESTEPS).sum().backward()
    assert latents.grad is not None


def test_samplers_that_do_not_fit_are_named() -> None:
    assert FlowMatchEulerDiscreteScheduler.from_config(RectifiedFlow(shift=2.0).scheduler_config("euler")).config["shift"] == 2
    with pytest.raises(ValueError, match=r"expected dpm-solver\+\+, ddim, sa-solver or lcm .* found euler"):
        Diffusion().scheduler_config("euler")
    with pytest.raises(ValueError, match="objective: expected diffusion or rectified_flow, found 'flow'"):
        make_objective("flow")
    with pytest.raises(ValueError, match="objective diffusion: .*betas"):
        make_objective("diffusion", {"betas": 3})
    for shift in (0, "3"):
        with pytest.raises(ValueError, match="objective rectified_flow: "):
            make_objective("rectified_flow", {"shift": shift})
    with pytest.raises(ValueError, match="objective diffusion: .* beta_end < 1"):
        make_objective("diffusion", {"beta_end": -1})


def test_channels_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"prediction: expected \(4, 8, 6, 5\) .* found \(4, 4, 6, 5\)"):
        Diffusion().loss(_constant(_draw(0)), _draw(0), _draw(1), TIMESTEPS)


@pytest.mark.parametrize("objective", [Diffusion(learned_variance=False), RectifiedFlow()], ids=["diffusion", "flow"])
def test_validation_loss_does_not_depend_on_batches_or_on_the_global_seed(objective: Objective) -> None:
    latents = _draw(0)

    def model_fn(noisy: Tensor, timesteps: Tensor) -> Tensor:
        return noisy * timesteps.view(-1, 1, 1, 1) / 1000

    together = validation_loss(objective, model_fn, latents, range(4)).total
    torch.manual_seed(5)
    alone = torch.cat([validation_loss(objective, model_fn, latents[place, None], [place]).total for place in range(4)])
    assert torch.equal(together, alone)


def test_few_validation_timesteps_cover_all() -> None:
    _, timesteps = validation_noise(Diffusion(), torch.zeros(16, 1, 1, 1), range(16))
    gaps = timesteps.sort().values.diff(prepend=torch.zeros(1), append=torch.full((1,), 1000.0))
    assert gaps.max() < 120
