"""What the two editions of WISE share: prompts, instructions and a judge make a benchmark."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.evaluation.benchmark import OVERALL, Benchmark, Judge, JudgeSource, Published, Score
from trainer.evaluation.benchmarks.wise_instructions import Instructions, read_instructions
from trainer.evaluation.benchmarks.wise_judge import WiseJudge
from trainer.evaluation.benchmarks.wise_prompts import CATEGORIES, WiseFiles, first_of_each, own_prompts, read_prompts
from trainer.evaluation.config import EvaluateConfig
from trainer.evaluation.judges.endpoint import JudgeEndpoint
from trainer.evaluation.judges.endpoint_answers import ANSWERS, KeptAnswers, models_that_answered

_THINKING_END = "</think>"


@dataclass(frozen=True, kw_only=True)
class Edition:
    """What makes an edition of WISE."""

    name: str
    files: WiseFiles
    judge_model: str
    """The judge of its leaderboard."""
    body: Mapping[str, Any]
    """What its requests hold beside model and messages."""
    instructions: str
    """Our own words for the judge."""
    read_answer: Callable[[str], Mapping[str, float] | None]
    """Values by metric of an answer; None for one that is no verdict."""
    metric: str
    """The one that counts."""
    weights: Mapping[str, float]
    """Of the categories, in the overall score."""
    published: tuple[Published, ...] = ()
    """Figures of its leaderboard."""


def open_edition(edition: Edition, config: EvaluateConfig) -> Benchmark:
    """The benchmark. Raises UserError for prompts or instructions that cannot be read."""
    settings = config.wise
    instructions = _instructions(edition, settings.instructions)
    every = read_prompts(settings.folder, edition.files) if settings.folder else own_prompts()
    prompts = first_of_each(every, settings.prompts_per_category)
    asked = {**edition.body, **settings.judge.body, "model": settings.judge.model or edition.judge_model}
    body = {name: value for name, value in asked.items() if value is not None}
    differences = _differences(edition, config, model=body["model"], num_prompts=len(prompts))
    reservations = (f"told by {Path(settings.instructions).name}",) if settings.instructions else ()
    answers = Path(config.out) / ANSWERS / f"{edition.name}.jsonl"

    def differences_of_answers() -> tuple[str, ...]:
        others = [name for name in models_that_answered(answers) if name not in (edition.judge_model, body["model"])]
        return tuple(f"{name} answered in place of {edition.judge_model}" for name in others)

    def load() -> Judge:
        return WiseJudge(
            JudgeEndpoint(settings.judge),
            KeptAnswers(answers),
            instructions=instructions,
            body=body,
            read_answer=lambda answer: edition.read_answer(answer.rpartition(_THINKING_END)[2]),
        )

    version = json.dumps([edition.name, instructions.fingerprint, body], sort_keys=True)
    return Benchmark(
        name=edition.name,
        prompts=prompts,
        judges={edition.name: JudgeSource(version=version, load=load)},
        metric_of=dict.fromkeys(CATEGORIES, edition.metric),
        differences_of_answers=differences_of_answers,
        overall=lambda scores: overall(edition, scores),
        published=tuple(replace(one, differences=differences, reservations=reservations) for one in edition.published),
    )


def overall(edition: Edition, scores: Sequence[Score]) -> list[Score]:
    """The weighted sum of the categories; none where one is missing."""
    by_category = {score.category: score for score in scores if score.metric == edition.metric}
    if by_category.keys() != edition.weights.keys():
        return []
    value = sum(weight * by_category[category].value for category, weight in edition.weights.items())
    num_images = sum(score.num_images for score in by_category.values())
    return [Score(category=OVERALL, judge=edition.name, metric=edition.metric, num_images=num_images, value=value)]


def _instructions(edition: Edition, path: str | None) -> Instructions:
    return Instructions(messages=(("user", edition.instructions),)) if path is None else read_instructions(path)


def _differences(edition: Edition, config: EvaluateConfig, *, model: str, num_prompts: int) -> tuple[str, ...]:
    """Why figures are not those that the leaderboard would show."""
    whole, found = edition.files.last_ids[CATEGORIES[-1]], []
    if config.wise.folder is None:
        found.append("prompts of our own")
    elif num_prompts < whole:
        found.append(f"{num_prompts} of {whole} prompts")
    if model != edition.judge_model:
        found.append(f"{model} judges in place of {edition.judge_model}")
    if config.wise.instructions is None:
        found.append("instructions of our own")
    elif Path(config.wise.instructions).suffix != ".py":
        found.append(f"instructions of {Path(config.wise.instructions).name}")
    if config.wise.judge.body:
        found.append("other settings of the judge")
    return tuple(found)
