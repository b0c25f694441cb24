"""WISE_Verified (`wise_verified`): the edition of 2026, where an image is right or wrong, judged by an open model.

About 200 prompts are others than in `wise`, the judge is another and the score is 0 or 1: figures of the two do not compare,
and nobody has published PixArt-α's.

Source: the repository of WISE, its README of April 2026.
"""

import re

from trainer.evaluation.benchmark import Benchmark
from trainer.evaluation.benchmarks.wise_edition import Edition, WiseFiles, open_edition
from trainer.evaluation.benchmarks.wise_judge import RIGHT_OR_WRONG
from trainer.evaluation.config import EvaluateConfig

RIGHT = "wiscore_verified"
_SCORE = re.compile(r"\*{0,2}\bScore\*{0,2}\s*[:：]?\s*\*{0,2}\s*([01])(?![\d.]*\d)", re.IGNORECASE)
_BARE = re.compile(r"^\s*([01])\s*$", re.MULTILINE)


def read_score(answer: str) -> dict[str, float] | None:
    """0 or 1, as `Score: 1` or as the only figure on its line; None if there is none, or both."""
    found = set(_SCORE.findall(answer) or _BARE.findall(answer))
    return {RIGHT: float(found.pop())} if len(found) == 1 else None


VERIFIED = Edition(
    name="wise_verified",
    files=WiseFiles(
        folders=("data_verified", ""),
        names=(
            "cultural_common_sense_verified.json",
            "spatio-temporal_reasoning_verified.json",
            "natural_science_verified.json",
        ),
        last_ids={"culture": 400, "time": 520, "space": 640, "biology": 760, "physics": 880, "chemistry": 1000},
    ),
    judge_model="Qwen3.5-35B-A3B",
    body={"temperature": 0.0, "max_tokens": 500, "chat_template_kwargs": {"enable_thinking": False}},
    instructions=RIGHT_OR_WRONG,
    read_answer=read_score,
    metric=RIGHT,
    weights={"culture": 0.4, "time": 0.12, "space": 0.12, "biology": 0.12, "physics": 0.12, "chemistry": 0.12},
)


def open_benchmark(config: EvaluateConfig) -> Benchmark:
    """WISE_Verified. Raises UserError for a copy of it that is not whole."""
    return open_edition(VERIFIED, config)
