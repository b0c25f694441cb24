"""A benchmark with all that one may have: metadata, derived judges, set metrics, overall and published figures."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean

import numpy as np
import numpy.typing as npt

from tests.trainer.toy_benchmark import brightness
from trainer.evaluation.benchmark import OVERALL, Benchmark, JudgeSource, Prompt, Published, Score, SetMetric, Verdict
from trainer.evaluation.config import EvaluateConfig

PROMPTS = (
    Prompt(text="an owl", category="animals", data={"level": 0.25}),
    Prompt(text="a bat", category="animals", data={"level": 0.5}),
    Prompt(text="a bat", category="tools", data={"level": 1.0}),
)
stops_at: list[str] = []
"""The judge is interrupted at these prompts."""


def open_benchmark(config: EvaluateConfig) -> Benchmark:
    return Benchmark(
        name="rich",
        prompts=PROMPTS,
        num_images_per_prompt=2,
        judges={
            "level": JudgeSource(version="1", load=lambda: levels),
            "tools": JudgeSource(version="1", load=lambda: levels, categories=frozenset({"tools"})),
        },
        derived={"half": half},
        metric_of={"animals": "level", "tools": "half"},
        set_metrics={"mean_brightness": SetMetric(version="by bytes", measure=mean_brightness)},
        overall=overall,
        published=(
            Published(category="animals", metric="level", value=0.75, source="Owl 1", reservations=("other owls",)),
            Published(category="tools", metric="half", value=0.5, source="Owl 1", differences=("another judge",)),
            Published(category=OVERALL, metric="score", value=0.9, source="Owl 2"),
        ),
    )


def levels(images: Sequence[npt.NDArray[np.uint8]], prompts: Sequence[Prompt]) -> Iterator[Verdict]:
    """The brightness as a share of what the prompt's data says, one by one."""
    for image, prompt in zip(images, prompts, strict=True):
        if prompt.text in stops_at:
            raise KeyboardInterrupt
        yield Verdict(values={"level": brightness(image) / prompt.data["level"]})


def half(prompt: Prompt, verdicts: Mapping[str, Verdict]) -> Verdict | None:
    return Verdict(values={"half": verdicts["tools"].values["level"] / 2}) if "tools" in verdicts else None


def mean_brightness(images: Iterable[npt.NDArray[np.uint8]]) -> float:
    return fmean(map(brightness, images))


def overall(scores: Sequence[Score]) -> list[Score]:
    animals, tools = (next(one for one in scores if one.category == name) for name in ("animals", "tools"))
    value = 0.75 * animals.value + 0.25 * tools.value
    return [Score(category=OVERALL, judge="all", metric="score", num_images=6, value=value)]
