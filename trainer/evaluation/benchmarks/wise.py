"""WISE, the edition of the paper (`wise`): does an image show what its prompt only hints at? Judged by GPT-4o or another.

Three grades from 0 to 2 make an image's WiScore, (0.7 consistency + 0.2 realism + 0.1 aesthetic quality) / 2; the overall score
weighs the categories by their share of the 1,000 prompts.

Source: Niu et al. 2025 (arXiv 2503.07265); its repository, WISE_legacy.
"""

import re
from collections.abc import Mapping

from trainer.evaluation.benchmark import OVERALL, Benchmark, Published
from trainer.evaluation.benchmarks.wise_edition import Edition, WiseFiles, open_edition
from trainer.evaluation.benchmarks.wise_judge import GRADES
from trainer.evaluation.config import EvaluateConfig

WISCORE = "wiscore"
_WEIGHTS = {"consistency": 0.7, "realism": 0.2, "aesthetic quality": 0.1}
_GRADE = re.compile(
    r"\*{0,2}\b(Consistency|Realism|Aesthetic Quality)\*{0,2}\s*[:：]?\s*\*{0,2}\s*(\d+(?:\.\d+)?)", re.IGNORECASE
)
_BARE = re.compile(r"[\s*]*([0-2])[\s,;*]+([0-2])[\s,;*]+([0-2])[\s*]*")
_POSSIBLE = {"0", "1", "2"}
_PIXART = {"culture": 0.45, "time": 0.50, "space": 0.48, "biology": 0.49, "physics": 0.56, "chemistry": 0.34, OVERALL: 0.47}


def read_grades(answer: str) -> dict[str, float] | None:
    """The grades, 0 to 2, and the WiScore, 0 to 1; None if a grade is missing or is none of 0, 1 and 2.

    Of a grade that is given again the last counts. Source: the authors' code. Three digits and nothing else are the grades in
    their order.
    """
    bare = _BARE.fullmatch(answer)
    pairs = zip(_WEIGHTS, bare.groups(), strict=True) if bare else _GRADE.findall(answer)
    found = {name.lower(): grade for name, grade in pairs}
    if found.keys() != _WEIGHTS.keys() or not set(found.values()) <= _POSSIBLE:
        return None
    grades = {name: float(found[name]) for name in _WEIGHTS}
    return {name.replace(" ", "_"): grade for name, grade in grades.items()} | {WISCORE: wiscore(grades)}


def wiscore(grades: Mapping[str, float]) -> float:
    """Score from 0 to 1 of grades from 0 to 2."""
    return sum(weight * grades[name] for name, weight in _WEIGHTS.items()) / 2


LEGACY = Edition(
    name="wise",
    files=WiseFiles(
        folders=("WISE_legacy/data", "data", ""),
        names=("cultural_common_sense.json", "spatio-temporal_reasoning.json", "natural_science.json"),
        last_ids={"culture": 400, "time": 567, "space": 700, "biology": 800, "physics": 900, "chemistry": 1000},
    ),
    judge_model="gpt-4o-2024-05-13",
    body={"temperature": 0.0, "max_tokens": 2000},
    instructions=GRADES,
    read_answer=read_grades,
    metric=WISCORE,
    weights={"culture": 0.4, "time": 0.167, "space": 0.133, "biology": 0.1, "physics": 0.1, "chemistry": 0.1},
    published=tuple(
        Published(category=category, metric=WISCORE, value=value, source="PixArt-α, leaderboard of WISE (legacy)")
        for category, value in _PIXART.items()
    ),
)


def open_benchmark(config: EvaluateConfig) -> Benchmark:
    """WISE, legacy. Raises UserError for a copy of it that is not whole."""
    return open_edition(LEGACY, config)
