"""Sampling, from noise to latents: a network that knows the answer is led to it, by every sampler; guidance; seeds."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from foundry.errors import UserError
from model.diffusion import Diffusion, Objective, RectifiedFlow
from model.dit import Captions
from model.dit_config import RoutedBlocks
from model.layers.token_routing import TokenRoute
from model.sampling import Conditioning, SamplingConfig, draw_noise, image_generators, make_scheduler, sample_latents
from tests.model.tiny_networks import TEXT, captions, latents, random_network

PAIRS = [("dpm-solver++", Diffusion()), ("ddim", Diffusion()), ("dpm-solver++", RectifiedFlow()), ("euler", RectifiedFlow()),
         ("dpm-solver++", RectifiedFlow(shift=3.0)), ("euler", RectifiedFlow(shift=3.0)), ("ddim", RectifiedFlow(shift=3.0)),
         ("sa-solver", Diffusion()), ("sa-solver", RectifiedFlow(shift=3.0)), ("lcm", Diffusion()),
         ("lcm", RectifiedFlow())]  # fmt: skip


class Oracle(torch.nn.Module):
    """In place of a DiT: says what leads to `answers[caption]`, from the same equations as the training's noise."""

    def __init__(self, objective: Objective, answers: torch.Tensor, *, learned_variance: bool) -> None:
        super().__init__()
        self.objective = objective
        self.answers = torch.nn.Parameter(answers)  # (captions, C, h, w)
        self.learned_variance = learned_variance
        self.timesteps: list[float] = []

    def prepare(self, captions: Captions) -> Captions:
        return captions

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor, *, captions: Captions, **_: Any) -> torch.Tensor:
        self.timesteps.append(float(timesteps[0]))
        answers = self.answers[captions.tokens[:, 0].long()]
        if isinstance(self.objective, RectifiedFlow):
            prediction = (latents - answers) / (timesteps / 1000).view(-1, 1, 1, 1)
        else:
            signal = self.objective.add_noise(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), timesteps[:1])
            noise = self.objective.add_noise(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), timesteps[:1])
            prediction = (latents - signal * answers) / noise
        return torch.cat([prediction, torch.full_like(prediction, 9e9)], dim=1) if self.learned_variance else prediction


def caption(*places: int) -> Captions:
    """Captions of one token that says which answer they mean."""
    return Captions(
        tokens=torch.tensor(places, dtype=torch.float32)[:, None], lengths=torch.ones(len(places), dtype=torch.long)
    )


def answers(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 4, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("sampler", "objective"), PAIRS)
@pytest.mark.parametrize("steps", [5, 20])
def test_every_sampler_ends_where_the_network_leads(sampler: str, objective: Objective, steps: int) -> None:
    """Fails where a scheduler's schedule or sign is not that of the training."""
    oracle = Oracle(objective, answers(), learned_variance=isinstance(objective, Diffusion))
    latents = sample_latents(
        oracle,  # type: ignore[arg-type]
        objective,
        Conditioning(captions=caption(2, 0)),
        noise=draw_noise(image_generators([0, 1]), (4, 6, 6)),
        config=SamplingConfig(sampler=sampler, num_inference_steps=steps, guidance_scale=1),
        generators=image_generators([0, 1]),
    )
    # diffusers rounds DPM-Solver's timesteps to whole ones, also where the noise level lies between.
    tolerance = 0.05 if isinstance(objective, RectifiedFlow) and sampler != "euler" else 1e-3
    if sampler == "sa-solver":  # which ends at the lowest noise level of the training
        tolerance = 0.05
    torch.testing.assert_close(latents, answers()[[2, 0]], rtol=0, atol=tolerance)
    assert len(oracle.timesteps) == steps and oracle.timesteps == sorted(oracle.timesteps, reverse=True)
    assert 950 < oracle.timesteps[0] <= 1000


@pytest.mark.parametrize(("sampler", "objective"), PAIRS)
def test_guidance_goes_from_the_negative_prompt_past_the_prompt_in_all_channels(sampler: str, objective: Objective) -> None:
    oracle = Oracle(objective, answers(), learned_variance=isinstance(objective, Diffusion))
    latents = sample_latents(
        oracle,  # type: ignore[arg-type]
        objective,
        Conditioning(captions=caption(1), negative_captions=caption(2)),
        noise=draw_noise(image_generators([0]), (4, 6, 6)),
        config=SamplingConfig(sampler=sampler, guidance_scale=4.5),
        generators=image_generators([0]),
    )
    expected = answers()[2] + 4.5 * (answers()[1] - answers()[2])
    torch.testing.assert_close(latents[0], expected, rtol=0, atol=0.01 if sampler == "euler" else 0.2)


def test_noise_is_the_same_in_any_batch_and_that_of_diffusers() -> None:
    together = draw_noise(image_generators([3, 7, 3]), (4, 6, 8))
    assert torch.equal(together[1:2], draw_noise(image_generators([7]), (4, 6, 8)))
    assert torch.equal(together[0], together[2]) and not torch.equal(together[0], together[1])
    assert torch.equal(together, randn_tensor((3, 4, 6, 8), generator=image_generators([3, 7, 3])))


def test_the_noise_of_ddim_follows_the_seeds_and_given_steps_are_taken() -> None:
    objective = Diffusion()
    oracle = Oracle(objective, answers(), learned_variance=True)
    noise = draw_noise(image_generators([5, 6]), (4, 6, 6))
    seen: list[torch.Tensor] = []
    for seeds, places in [((5, 6), (0, 1)), ((6,), (1,))]:
        steps: list[torch.Tensor] = []
        sample_latents(
            oracle,  # type: ignore[arg-type]
            objective,
            Conditioning(captions=caption(*places)),
            noise=noise[list(places)],
            config=SamplingConfig(sampler="ddim", eta=1.0, guidance_scale=1),
            generators=image_generators(seeds),
            on_step=lambda step, timestep, latents, steps=steps: steps.append(latents),  # type: ignore[misc]
        )
        seen.append(steps[10][-1])
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-5, atol=1e-5)
    given = make_scheduler(RectifiedFlow(), SamplingConfig(sampler="euler", sigmas=(1.0, 0.6, 0.2)))
    assert given.timesteps.tolist() == pytest.approx([1000, 600, 200])
    given = make_scheduler(RectifiedFlow(shift=3.0), SamplingConfig(sampler="euler", sigmas=(1.0, 0.5)))
    assert given.timesteps.tolist() == pytest.approx([1000, 750])
    given = make_scheduler(Diffusion(), SamplingConfig(timesteps=(900, 400)))
    assert given.timesteps.tolist() == [900, 400]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "heun"}, "sampler must be one of"),
        ({"num_inference_steps": 0}, "num_inference_steps must be 1 to 1000"),
        ({"guidance_scale": -0.5}, "guidance_scale must be 0 or more"),
        ({"eta": 0.5}, "eta must be 0, or up to 1 with ddim"),
        ({"timesteps": (1, 2)}, "timesteps must be falling, in 0..999"),
        ({"timesteps": (1000, 2)}, "timesteps must be falling, in 0..999"),
        ({"timesteps": ()}, "timesteps must be falling, in 0..999"),
        ({"sampler": "ddim", "timesteps": (2, 1)}, r"timesteps must be given with dpm-solver\+\+ only"),
        ({"sigmas": (1.0, 1.0)}, "sigmas must be falling, above 0, 1 at most"),
        ({"sigmas": (1.0, 0.0)}, "sigmas must be falling, above 0, 1 at most"),
        ({"shift": 0.0}, "shift must be above 0"),
        ({"guidance_by": "route"}, "guidance_by must be one of prompt, routing"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**options)


@pytest.mark.parametrize("sampler", ["dpm-solver++", "euler"])
def test_a_shift_takes_the_place_of_the_trainings(sampler: str) -> None:
    trained, other = RectifiedFlow(shift=1.5), SamplingConfig(sampler=sampler, shift=4.0)
    expected = make_scheduler(RectifiedFlow(shift=4.0), SamplingConfig(sampler=sampler))
    assert make_scheduler(trained, other).timesteps.tolist() == expected.timesteps.tolist()
    assert make_scheduler(trained, SamplingConfig(sampler=sampler)).timesteps.tolist() != expected.timesteps.tolist()
    with pytest.raises(UserError, match="for the objective rectified_flow, found diffusion") as error:
        make_scheduler(Diffusion(), SamplingConfig(shift=2.0))
    assert error.value.setting == "shift"


def test_guidance_by_routing_leads_from_a_routed_pass_past_the_whole_one_of_the_same_prompt() -> None:
    network = random_network(replace(TEXT, depth=5, learned_variance=False)).double()
    read, blocks = captions(2).to(dtype=torch.float64), RoutedBlocks()
    noise, seeds = latents(2, height=8, width=8).double(), (4, 9)
    config = SamplingConfig(sampler="euler", num_inference_steps=1, guidance_scale=3.0, guidance_by="routing")

    def sampled(rows: list[int]) -> torch.Tensor:
        conditioning = Conditioning(captions=read.select(rows), routed=blocks)
        generators = image_generators([seeds[row] for row in rows])
        return sample_latents(network, RectifiedFlow(), conditioning, noise=noise[rows], config=config, generators=generators)

    ranks = torch.stack([torch.rand(16, generator=generator) for generator in image_generators(seeds)])
    times = torch.full((2,), 1000.0)
    with torch.no_grad():
        start = noise.float().double()
        full = network(start, times, captions=read)
        weak = network(start, times, captions=read, route=TokenRoute.by_rank(ranks, blocks))
    expected = start - (weak + 3.0 * (full - weak))  # one step from pure noise to the latents
    together = sampled([0, 1])
    torch.testing.assert_close(together.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sampled([1]), together[1:], rtol=1e-4, atol=1e-4)  # an image's tokens come from its seed
    assert not config.guided and not torch.allclose(full, weak)


def test_what_is_not_set_is_not_recorded_so_that_older_evaluations_resume() -> None:
    assert not {"shift", "guidance_by"} & SamplingConfig().record().keys()
    assert SamplingConfig(shift=2.0, guidance_by="routing").record().items() >= {"shift": 2.0, "guidance_by": "routing"}.items()


def test_a_sampler_of_the_other_objective_is_refused() -> None:
    with pytest.raises(UserError, match="found euler"):
        make_scheduler(Diffusion(), SamplingConfig(sampler="euler"))
    with pytest.raises(UserError, match="eta: expected 0 for the objective rectified_flow: take the sampler sa-solver"):
        make_scheduler(RectifiedFlow(), SamplingConfig(sampler="ddim", eta=0.5))
    with pytest.raises(UserError, match="expected none for the objective rectified_flow; give sigmas"):
        make_scheduler(RectifiedFlow(), SamplingConfig(timesteps=(900, 400)))
    with pytest.raises(UserError, match="expected none for the objective diffusion; give timesteps"):
        make_scheduler(Diffusion(), SamplingConfig(sigmas=(1.0, 0.4)))


@pytest.mark.parametrize("sampler", ["dpm-solver++", "ddim", "sa-solver", "euler", "lcm"])
def test_given_noise_levels_are_taken_by_every_sampler_of_a_flow(sampler: str) -> None:
    objective = RectifiedFlow(shift=3.0)
    config = SamplingConfig(sampler=sampler, sigmas=(1.0, 0.5, 0.2), guidance_scale=1)
    expected = [3 * level / (1 + 2 * level) for level in (1.0, 0.5, 0.2)]
    scheduler = make_scheduler(objective, config)
    assert scheduler.timesteps.tolist() == pytest.approx([1000 * level for level in expected], rel=1e-3)
    assert scheduler.sigmas.tolist()[:-1] == pytest.approx(expected, rel=1e-3)
    oracle = Oracle(objective, answers(), learned_variance=False)
    latents = sample_latents(
        oracle,  # type: ignore[arg-type]
        objective,
        Conditioning(captions=caption(1)),
        noise=draw_noise(image_generators([0]), (4, 6, 6)),
        config=config,
        generators=image_generators([0]),
    )
    torch.testing.assert_close(latents, answers()[[1]], rtol=0, atol=0.02)
    assert oracle.timesteps == pytest.approx(scheduler.timesteps.tolist())


def test_noise_on_the_way_follows_each_images_seed() -> None:
    objective = RectifiedFlow()
    network = Oracle(objective, answers(), learned_variance=False)
    for sampler in ("sa-solver", "lcm"):
        seen: dict[tuple[int, ...], torch.Tensor] = {}
        for seeds, places in [((5, 6), (0, 1)), ((6,), (1,)), ((7,), (1,))]:
            steps: list[torch.Tensor] = []
            sample_latents(
                network,  # type: ignore[arg-type]
                objective,
                Conditioning(captions=caption(*places)),
                noise=draw_noise(image_generators([1, 2]), (4, 6, 6))[list(places)],
                config=SamplingConfig(sampler=sampler, num_inference_steps=6, guidance_scale=1),
                generators=image_generators(seeds),
                on_step=lambda step, timestep, latents, steps=steps: steps.append(latents),  # type: ignore[misc]
            )
            seen[seeds] = steps[2][-1]
        torch.testing.assert_close(seen[5, 6], seen[(6,)], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(seen[(6,)], seen[(7,)])
