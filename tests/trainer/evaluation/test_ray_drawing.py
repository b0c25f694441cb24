"""Drawing as units of work, called as the driver of units calls it, in this process."""

from dataclasses import replace
from pathlib import Path

import pytest

from foundry.units.rejection import Failure
from foundry.units.workers import JobFailed
from model.generation.image_files import image_names
from model.generation.pipeline import Pipeline
from model.generation.pipeline_parts import RuntimeConfig
from model.generation.request import GenerationRequest
from model.sampling import SamplingConfig
from tests.model.tiny_parts import poison_captions, save_tiny_checkpoint
from trainer.evaluation.config import EvaluateConfig
from trainer.evaluation.drawing import Drawing
from trainer.evaluation.ray_drawing import DrawingJob, Drawn, Shard, ShardCommit

PROMPTS = ("an owl", "a bat", "a key")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def job(checkpoint: Path, tmp_path: Path) -> DrawingJob:
    runtime = RuntimeConfig(device="cpu", dtype="float32", batch_size=2)
    config = EvaluateConfig(benchmark="t2i_compbench", checkpoint=str(checkpoint), out=str(tmp_path), runtime=runtime)
    request = GenerationRequest(prompts=PROMPTS, seeds=(0, 1, 2), sampling=SamplingConfig(num_inference_steps=2))
    paths = tuple(tmp_path / name for name in image_names(list(PROMPTS), (0, 1, 2)))
    return DrawingJob(Drawing(config=config, request=request, paths=paths, settings={}))


def test_a_shard_is_drawn_and_what_is_there_is_left(job: DrawingJob, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = Shard(number=0, part="", row_group=0, num_images=2, indices=(2, 0))
    engine = job.load_engine()
    job.check(engine)
    assert not any(path.exists() for path in job.drawing.paths)
    payload, facts = job.prepare(shard, [0, 1])
    output = job.process(engine, payload, one_by_one=False)
    commit = job.finish(shard, facts=facts, output=output, excluded={})
    assert (commit.planned, commit.completed) == (2, 2)
    assert [path.exists() for path in job.drawing.paths] == [True, False, True]
    drawn: list[int] = []
    monkeypatch.setattr(Drawing, "draw", lambda _self, _pipeline, indices, **_: drawn.extend(indices))
    job.process(engine, [0, 1, 2], one_by_one=False)
    assert drawn == [1]


def test_an_image_alone_is_that_of_its_batch(job: DrawingJob, tmp_path: Path) -> None:
    engine = job.load_engine()
    job.process(engine, [0, 1, 2], one_by_one=False)
    alone = replace(job.drawing, paths=tuple(tmp_path / "alone" / path.name for path in job.drawing.paths))
    (tmp_path / "alone").mkdir()
    DrawingJob(alone).process(engine, [0, 1, 2], one_by_one=True)
    assert [path.read_bytes() for path in alone.paths] == [path.read_bytes() for path in job.drawing.paths]


def test_an_image_that_is_not_finite_holds_no_other_up(job: DrawingJob, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = Shard(number=0, part="", row_group=0, num_images=3, indices=(0, 1, 2))
    engine = job.load_engine()
    poison_captions(monkeypatch, prompt=PROMPTS[0])
    job.check(engine)
    for one_by_one in (False, True):
        commit = job.finish(shard, facts=0.0, output=job.process(engine, [0, 1, 2], one_by_one=one_by_one), excluded={})
        assert isinstance(commit, ShardCommit)
        assert (commit.completed, commit.rejected) == (2, {"not_finite": 1})
        assert "the first for the prompt 'an owl' with seed 0: the text encoder's output is NaN" in commit.not_finite
        assert [path.exists() for path in job.drawing.paths] == [False, True, True]


def test_an_image_that_always_fails_ends_the_drawing_by_its_name(job: DrawingJob) -> None:
    shard = Shard(number=0, part="", row_group=0, num_images=2, indices=(2, 0))
    failure = Failure(reason="model_error", message="ValueError: too long")
    with pytest.raises(JobFailed, match=rf"{job.drawing.paths[0].name} cannot be drawn \(ValueError: too long\)"):
        job.finish(shard, facts=0.0, output=Drawn(1), excluded={1: failure})


def test_a_staged_pipeline_is_not_loaded_for_the_check(job: DrawingJob) -> None:
    def stream(*_: object, **__: object) -> None:
        raise AssertionError("drawn")

    engine = job.load_engine()
    engine.runtime = replace(engine.runtime, staged=True)
    engine.stream = stream  # type: ignore[assignment]
    assert isinstance(engine, Pipeline)
    job.check(engine)
