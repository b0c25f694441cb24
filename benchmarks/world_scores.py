"""Scores of a pipeline on held-out prompts of the small world by both evaluators, in this process: nothing is kept."""

from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.generation.pipeline import Pipeline
    from model.sampling import SamplingConfig

_SEEDS_APART = 1_000_000


class WorldScorer:
    """The held-out prompts of the benchmark examples.openmoji, and its evaluators."""

    def __init__(self, *, prompts_per_category: int) -> None:
        """`prompts_per_category`: of each category and split, of which the held-out ones are drawn."""
        from examples.openmoji.benchmark import open_benchmark
        from trainer.evaluation.config import EvaluateConfig, OpenMojiConfig

        settings = OpenMojiConfig(prompts_per_category=prompts_per_category)
        name = "examples.openmoji.benchmark"
        benchmark = open_benchmark(EvaluateConfig(benchmark=name, out="", checkpoint="mini", openmoji=settings))
        self.prompts = [prompt for prompt in benchmark.prompts if prompt.held_out]
        self._judges = [source.load() for source in benchmark.judges.values()]

    def scores(self, pipeline: "Pipeline", sampling: "SamplingConfig", *, num_seeds: int) -> dict[str, list[float]]:
        """By metric, the mean over prompts and evaluators with each seed; the noise is the same in every call."""
        import numpy as np

        from model.generation.request import GenerationRequest

        texts = tuple(prompt.text for prompt in self.prompts)
        found: dict[str, list[float]] = {}
        for seed in range(num_seeds):
            seeds = tuple(seed * _SEEDS_APART + index for index in range(len(texts)))
            drawn = pipeline(GenerationRequest(prompts=texts, seeds=seeds, sampling=sampling))
            images = [np.asarray(one.image) for one in drawn]
            values: dict[str, list[float]] = {}
            for judge in self._judges:
                for verdict in judge(images, self.prompts):
                    for metric, value in verdict.values.items():
                        values.setdefault(metric, []).append(value)
            for metric, numbers in values.items():
                found.setdefault(metric, []).append(fmean(numbers))
        return found
