"""The benchmark of the small world: both judges find true scenes right, and differ in what they look at."""

import numpy as np
import pytest

from examples.openmoji.backgrounds import background_pixels
from examples.openmoji.benchmark import open_benchmark
from trainer.evaluation.benchmark import Benchmark
from trainer.evaluation.config import EvaluateConfig, OpenMojiConfig


@pytest.fixture(scope="module")
def benchmark_of_two() -> Benchmark:
    """Two prompts of each category, one of them held out."""
    settings = OpenMojiConfig(prompts_per_category=1)
    return open_benchmark(EvaluateConfig(benchmark="examples.openmoji.benchmark", out="", images="", openmoji=settings))


@pytest.mark.parametrize("name", ["llava-mini", "sprites"])
def test_a_judge_finds_true_scenes_right_and_others_wrong(name: str, benchmark_of_two: Benchmark) -> None:
    benchmark, judge = benchmark_of_two, benchmark_of_two.judges[name].load()
    assert benchmark.true_images is not None
    prompts = benchmark.prompts
    true = judge([benchmark.true_images.of(prompt) for prompt in prompts], prompts)
    assert np.mean([verdict.values["object"] for verdict in true]) >= 0.95
    assert np.mean([verdict.values["background"] for verdict in true]) >= 0.95
    assert np.mean([verdict.values["all"] for verdict in true]) >= 0.8
    assert all(benchmark.metric_of[prompt.category] in one.values for prompt, one in zip(prompts, true, strict=True))
    assert all(verdict.seen for verdict in true)
    other = judge([benchmark.true_images.others(prompt) for prompt in prompts], prompts)
    assert np.mean([verdict.values["all"] for verdict in other]) == 0.0
    assert np.mean([verdict.values["object"] for verdict in other]) < 0.3


def test_larger_images_are_judged_as_small_ones(benchmark_of_two: Benchmark) -> None:
    benchmark, judge = benchmark_of_two, benchmark_of_two.judges["sprites"].load()
    assert benchmark.true_images is not None
    prompt = benchmark.prompts[0]
    image = benchmark.true_images.of(prompt)
    small, large = judge([image, image.repeat(4, axis=0).repeat(4, axis=1)], [prompt, prompt])
    assert small == large


def test_the_embedding_tells_images_apart(benchmark_of_two: Benchmark) -> None:
    (load,) = benchmark_of_two.embeddings.values()
    images = [background_pixels("pink", "dotted"), background_pixels("pink", "plain"), background_pixels("pink", "dotted")]
    features = load()(images)
    assert features.shape == (3, 192)
    assert np.allclose(features[0], features[2], atol=1e-5)
    assert not np.allclose(features[0], features[1], atol=1e-2)
