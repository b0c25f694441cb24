"""Images are those of the pipeline, whatever they were drawn with; who goes away costs nothing, and a failure is its own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foundry.errors import NotFiniteOutput, UserError
from model.dit import DiT
from model.dit_config import FewSteps
from model.generation.pipeline import Pipeline, open_pipeline
from model.generation.pipeline_parts import RuntimeConfig
from model.generation.request import GeneratedImage, GenerationRequest
from model.lora.file import read_adapter, write_adapter
from model.lora.settings import LoraChoice
from model.sampling import SamplingConfig
from model.serving.adapters import NamedAdapters
from model.serving.engine import Busy, Engine, Job, Stopping, warm_up
from model.serving.image_request import RequestReader
from model.serving.settings import ServerLimits
from tests.model.serving.conftest import BATCH_SIZE, MAX_WAITING, Gate, NewEngine
from tests.model.tiny_parts import poison_captions


def order(prompt: str = "a red owl", *, steps: int = 3, n: int = 1, seed: int = 0, **options: Any) -> GenerationRequest:
    sampling = {name: options.pop(name) for name in ("guidance_scale", "sampler", "eta") if name in options}
    return GenerationRequest(
        prompts=(prompt,),
        num_images_per_prompt=n,
        seed=seed,
        sampling=SamplingConfig(num_inference_steps=steps, **sampling),
        **options,
    )


ORDERS = [
    order("a red owl on the left.", steps=4, n=2, seed=5),
    order("key", steps=6, seed=1, guidance_scale=2.0, negative_prompt="blue key"),
    order("a small key", steps=2, seed=9, guidance_scale=1.0),
    order("the blue owl", steps=5, sampler="euler", guidance_scale=3.0),
    order("key", steps=3, n=3, height=24, width=40),
]


def assert_same(found: list[GeneratedImage], expected: list[GeneratedImage]) -> None:
    assert [(one.index, one.prompt, one.seed) for one in found] == [(one.index, one.prompt, one.seed) for one in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.latents, other.latents, rtol=1e-4, atol=1e-4)
        assert np.abs(np.asarray(one.image).astype(int) - np.asarray(other.image)).max() <= 1


def test_images_are_those_of_the_pipeline_whatever_shares_their_steps(
    pipeline: Pipeline, new_engine: NewEngine, gate: Gate
) -> None:
    expected = [pipeline(request) for request in ORDERS]
    assert np.abs(np.asarray(expected[0][0].image).astype(int) - np.asarray(expected[0][1].image)).max() > 20
    engine = new_engine()
    gate.close()
    jobs = [engine.submit(ORDERS[0])]
    gate.arrival()
    jobs += [engine.submit(request) for request in ORDERS[1:]]  # these join at the second step
    gate.open()
    for job, images in zip(jobs, expected, strict=True):
        assert_same(job.answer.result(60), images)
    assert {1, 2, 3, 4} <= set(gate.steps)  # they came and went, and those of another kind stepped by themselves
    assert engine.num_drawn == sum(request.num_images for request in ORDERS)


def test_images_of_other_requests_join_at_any_step(new_engine: NewEngine, gate: Gate) -> None:
    engine = new_engine()
    gate.close()
    first = engine.submit(order(steps=4))
    gate.arrival()
    others = [engine.submit(order(seed=seed, steps=4)) for seed in range(1, 6)]
    gate.open()
    for job in (first, *others):
        job.answer.result(60)
    assert gate.steps[:5] == [1, BATCH_SIZE, BATCH_SIZE, BATCH_SIZE, BATCH_SIZE]  # the fifth took the first's place
    assert sum(gate.steps) == 6 * 4


def test_who_goes_away_costs_no_further_step(new_engine: NewEngine, gate: Gate) -> None:
    engine = new_engine()
    gate.close()
    leaving, staying = engine.submit(order(n=3, steps=9)), engine.submit(order(seed=7))
    waiting = engine.submit(order(n=2, seed=8))
    gate.arrival()
    engine.abandon(leaving)
    engine.abandon(waiting)
    gate.open()
    assert len(staying.answer.result(60)) == 1
    assert gate.steps[1:] in ([1, 1], [1, 1, 1])  # the second request alone; in the first step it may not have joined yet
    assert not leaving.answer.done() and not waiting.answer.done()
    assert engine.num_drawn == 1


def test_a_batch_that_nobody_waits_for_stops_between_steps(new_engine: NewEngine, gate: Gate) -> None:
    engine = new_engine()
    gate.close()
    job = engine.submit(order(steps=50))
    gate.arrival()
    engine.abandon(job)
    gate.open()
    assert engine.submit(order(steps=1)).answer.result(60)
    assert gate.steps == [1, 1]


def test_a_full_queue_says_when_to_ask_again(new_engine: NewEngine, gate: Gate) -> None:
    engine = new_engine()
    gate.close()
    running = engine.submit(order())
    gate.arrival()
    waiting = engine.submit(order(n=MAX_WAITING))
    with pytest.raises(Busy, match=f"{MAX_WAITING} images wait already, and at most {MAX_WAITING} may") as busy:
        engine.submit(order())
    assert 1 <= busy.value.retry_after_s <= 300
    engine.abandon(waiting)  # what leaves makes room at once
    last = engine.submit(order(seed=1))
    gate.open()
    assert running.answer.result(60) and last.answer.result(60)


def test_adapters_are_those_of_the_pipeline_and_leave_nothing_behind(
    lora_engine: Engine, checkpoint: Path, lora: Path, pipeline: Pipeline
) -> None:
    def adapted(scale: float) -> list[GeneratedImage]:
        runtime = RuntimeConfig(dtype="float32", batch_size=BATCH_SIZE)
        return open_pipeline(checkpoint, runtime=runtime, lora=[LoraChoice(str(lora), scale)])(order())

    submit: Callable[..., Job] = lora_engine.submit
    plain, half, whole = pipeline(order()), adapted(0.5), adapted(1.0)
    assert (plain[0].latents - whole[0].latents).abs().max() > 0.1
    jobs = [submit(order(), scales) for scales in ((), (("owl", 1.0),), (("owl", 0.5),), (("owl", 1.0),), ())]
    for job, expected in zip(jobs, (plain, whole, half, whole, plain), strict=True):
        assert_same(job.answer.result(60), expected)


def test_an_adapter_of_few_steps_is_sampled_as_by_the_pipeline(checkpoint: Path, lora: Path, tmp_path: Path) -> None:
    few = FewSteps(method="consistency", num_inference_steps=3, guidance_scale=4.5)
    path = tmp_path / "few.safetensors"
    write_adapter(path, replace(read_adapter(lora), few_steps=few))
    runtime = RuntimeConfig(dtype="float32", batch_size=BATCH_SIZE)
    adapters = NamedAdapters({"few": LoraChoice(str(path)), "owl": LoraChoice(str(lora))}, checkpoint)
    reader = RequestReader(
        name="tiny",
        adapters=adapters.scales,
        sampling=SamplingConfig(),
        limits=ServerLimits(),
        resolution=32,
        few_steps=adapters.few_steps,
    )
    assert adapters.few_steps == {"few": few}
    engine = Engine(open_pipeline(checkpoint, runtime=runtime), adapters, max_waiting=MAX_WAITING)
    bodies: list[dict[str, Any]] = [{"lora": ["few"]}, {}, {"lora": ["few"], "guidance": 2}, {"lora": ["few", "owl:0.5"]}]
    orders = [reader.read({"prompt": "a red owl", "seed": 3, **body}) for body in bodies]
    jobs = [engine.submit(order.request, order.adapters) for order in orders]
    choices = [[LoraChoice(str(path))], [], [LoraChoice(str(path))], [LoraChoice(str(path)), LoraChoice(str(lora), 0.5)]]
    for job, body, lora_choices in zip(jobs, bodies, choices, strict=True):
        sampling = SamplingConfig(guidance_scale=body.get("guidance"))
        asked = GenerationRequest(prompts=("a red owl",), seed=3, sampling=sampling)
        assert_same(job.answer.result(60), open_pipeline(checkpoint, runtime=runtime, lora=lora_choices)(asked))
    assert orders[0].request.sampling.num_inference_steps == 3 and orders[1].request.sampling.num_inference_steps == 20
    engine.close()


def test_adapters_are_added_before_weights_are_quantised(checkpoint: Path, lora: Path) -> None:
    runtime = RuntimeConfig(dtype="float32", batch_size=2, weights="int4")
    engine = Engine(
        open_pipeline(checkpoint, runtime=runtime), NamedAdapters({"owl": LoraChoice(str(lora))}, checkpoint), max_waiting=4
    )
    for scales, choices in ((("owl", 1.0),), [LoraChoice(str(lora))]), ((), []):
        expected = open_pipeline(checkpoint, runtime=runtime, lora=choices)(order())
        assert_same(engine.submit(order(), scales).answer.result(60), expected)
    engine.close()


def test_a_failure_is_that_of_the_images_it_happened_to(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch, gate: Gate, pipeline: Pipeline
) -> None:
    engine, forward = new_engine(), DiT.forward

    def broken(self: DiT, latents: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        if latents.shape[-1] == 20:
            raise torch.OutOfMemoryError("CUDA out of memory\nmore")
        return forward(self, latents, *arguments, **named)

    monkeypatch.setattr(DiT, "forward", broken)
    gate.close()
    sound = engine.submit(order(steps=2))
    gate.arrival()
    wide = engine.submit(order(width=40, n=2))
    gate.open()
    error = wide.answer.exception(60)
    assert isinstance(error, UserError) and "out of memory (CUDA out of memory more): serve with a smaller" in str(error)
    assert sound.answer.result(60)
    assert engine.submit(order()).answer.result(60) and engine.failure == ""


def test_a_model_that_is_lost_is_told_from_a_bad_request(new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, forward = new_engine(), DiT.forward

    def lost(*arguments: Any, **named: Any) -> torch.Tensor:
        raise RuntimeError("device lost")

    monkeypatch.setattr(DiT, "forward", lost)
    told = []
    for _ in range(3):
        assert isinstance(engine.submit(order()).answer.exception(60), RuntimeError)
        told.append(engine.failure)
    assert told[0] == "" and "RuntimeError: device lost" in told[2]
    monkeypatch.setattr(DiT, "forward", forward)
    assert engine.submit(order()).answer.result(60) and engine.failure == ""


def test_what_is_not_finite_is_told(new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    poison_captions(monkeypatch, prompt="a bad owl")
    engine = new_engine()
    bad, good = engine.submit(order("a bad owl")), engine.submit(order("a good owl"))
    assert good.answer.result(60)
    error = bad.answer.exception(60)
    assert isinstance(error, NotFiniteOutput) and "the text encoder's output is NaN" in str(error)
    output = DiT.forward
    monkeypatch.setattr(DiT, "forward", lambda *arguments, **named: output(*arguments, **named) * torch.nan)
    error = engine.submit(order()).answer.exception(60)
    assert isinstance(error, NotFiniteOutput) and "the network's output is NaN" in str(error)


def test_what_does_not_fit_is_refused_at_once(new_engine: NewEngine) -> None:
    engine = new_engine()
    with pytest.raises(UserError, match="multiples of 4 px, found 30 x 32"):
        engine.submit(order(height=30))
    with pytest.raises(UserError, match="eta: expected 0 for the objective rectified_flow"):
        engine.submit(order(sampler="ddim", eta=0.5))


def test_a_stop_finishes_what_is_under_way_alone(new_engine: NewEngine, gate: Gate) -> None:
    engine = new_engine()
    gate.close()
    running = engine.submit(order(n=BATCH_SIZE + 1))  # its last image waits for a place
    gate.arrival()
    waiting = engine.submit(order())
    engine.drain()
    assert isinstance(waiting.answer.exception(60), Stopping) and not engine.is_running
    with pytest.raises(Stopping):
        engine.submit(order())
    gate.open()
    engine.close()
    assert len(running.answer.result(0)) == BATCH_SIZE + 1


def test_an_edit_begins_from_its_image(new_engine: NewEngine, pipeline: Pipeline) -> None:
    image = pipeline(order(steps=1))[0].image
    request = order(image=image, strength=0.5, steps=4, n=2, seed=3)
    engine = new_engine()
    assert_same(engine.submit(request).answer.result(60), pipeline(request))
    untouched = order(image=image, strength=0.0)
    assert_same(engine.submit(untouched).answer.result(60), pipeline(untouched))


def test_a_missing_part_is_found_before_the_first_request(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no text_encoder"):
        warm_up(open_pipeline(checkpoint, text_encoder=str(tmp_path / "none")), SamplingConfig())
