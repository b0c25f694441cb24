"""A benchmark whose figures can be worked out by hand: the judge's score is the share of an image's brightness."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.evaluation.benchmark import Benchmark, JudgeSource, Prompt, TrueImages, Verdict
from trainer.evaluation.config import EvaluateConfig

PROMPTS = (
    Prompt(text="a red owl", category="bright"),
    Prompt(text="a blue key", category="bright", held_out=True),
    Prompt(text="the large owl", category="dark"),
)
asked: list[str] = []
"""The prompts that the judge was asked about, in order."""
stops_after: list[int] = []
"""After this many prompts the judge is interrupted."""


def open_benchmark(config: EvaluateConfig) -> Benchmark:
    return Benchmark(
        name="toy",
        prompts=PROMPTS,
        judges={"brightness": JudgeSource(version="1", load=lambda: judge)},
        metric_of={"bright": "brightness", "dark": "darkness"},
        true_images=TrueImages(of=lambda prompt: gray(255), others=lambda prompt: gray(255 - len(prompt.text))),
        embeddings={"brightness": lambda: embed},
    )


def judge(images: Sequence[npt.NDArray[np.uint8]], prompts: Sequence[Prompt]) -> list[Verdict]:
    verdicts = []
    for image, prompt in zip(images, prompts, strict=True):
        if stops_after and len(asked) >= stops_after[0]:
            raise KeyboardInterrupt
        asked.append(prompt.text)
        share = brightness(image)
        verdicts.append(Verdict(values={"brightness": share, "darkness": 1 - share}, seen=f"gray {share:.2f}"))
    return verdicts


def brightness(image: npt.NDArray[Any]) -> float:
    return float(image.mean() / 255)


def embed(images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float64]:
    return np.array([[255 * brightness(image)] for image in images])


def gray(level: int) -> npt.NDArray[np.uint8]:
    return np.full((8, 8, 3), level, dtype=np.uint8)
