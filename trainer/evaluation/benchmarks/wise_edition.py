"""Editions of WISE: prompts, instructions and a judge make a benchmark. Prompts come from the user's copy of its repository, or
are a few that we wrote."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from foundry.errors import UserError
from trainer.evaluation.benchmark import OVERALL, Benchmark, Judge, JudgeSource, Prompt, Published, Score
from trainer.evaluation.benchmarks.wise_judge import Instructions, WiseJudge, read_instructions
from trainer.evaluation.config import EvaluateConfig
from trainer.evaluation.judges.endpoint import ANSWERS, JudgeEndpoint, KeptAnswers, models_that_answered

_THINKING_END = "</think>"
CATEGORIES = ("culture", "time", "space", "biology", "physics", "chemistry")
_FIELDS = {"Prompt": "text", "Explanation": "explanation", "Subcategory": "subcategory"}
_LACKS = "give a complete copy of the repository of WISE, which is"
OWN: Mapping[str, tuple[tuple[str, str], ...]] = {
    "culture": (
        ("the vegetable that gets a carved face at the end of October", "A hollowed pumpkin with a face cut into it."),
        ("a round dish from Naples in the colours of the Italian flag", "A pizza with tomatoes, mozzarella and basil."),
    ),
    "time": (
        ("an oak tree in Germany in the middle of January", "A bare oak without leaves, in winter light; snow is possible."),
        ("a harbour far north of the Arctic Circle at midnight in June", "The sun above the horizon: a harbour in daylight."),
    ),
    "space": (
        ("a red ball in front of a mirror, seen from behind the ball", "The ball and its reflection in the mirror."),
        ("what stands behind the Great Sphinx", "The Sphinx with the pyramids of Giza behind it."),
    ),
    "biology": (
        ("what has become of a tadpole a year later, sitting by a pond", "A grown frog or toad with four legs and no tail."),
        ("a hare of the high Arctic in winter", "A hare with white fur, in snow."),
    ),
    "physics": (
        ("an ice cube and an iron nail in a glass of water", "The ice floats at the surface, the nail lies on the bottom."),
        ("a narrow beam of sunlight that has passed a glass prism", "A spectrum: the colours of the rainbow in their order."),
    ),
    "chemistry": (
        ("an iron gate after twenty years of rain without paint", "A gate covered with reddish brown rust."),
        ("a candle a minute after a glass was put over it", "A candle under a glass, its flame gone out."),
    ),
}
"""Prompts with what a right image shows, for a first try."""


@dataclass(frozen=True, kw_only=True)
class WiseFiles:
    """Files of the prompts of an edition of WISE."""

    folders: tuple[str, ...]
    """Inside the repository, the first that there is."""
    names: tuple[str, str, str]
    """Names of the files: culture, time and space, the sciences."""
    last_ids: Mapping[str, int]
    """The number of the last prompt of each category, in their order; the first one is 1."""

    def category(self, prompt_id: int) -> str:
        """The category of a prompt."""
        return next(category for category in CATEGORIES if prompt_id <= self.last_ids[category])

    def ids(self, name: str) -> range:
        """The numbers of a file's prompts."""
        ends = (0, *(self.last_ids[category] for category in ("culture", "space", "chemistry")))
        index = self.names.index(name)
        return range(ends[index] + 1, ends[index + 1] + 1)


@dataclass(frozen=True, kw_only=True)
class Edition:
    """Settings of an edition of WISE."""

    name: str
    files: WiseFiles
    judge_model: str
    """The judge of its leaderboard."""
    body: Mapping[str, Any]
    """Fields of its requests besides model and messages."""
    instructions: str
    """Our own words for the judge."""
    read_answer: Callable[[str], Mapping[str, float] | None]
    """Values by metric of an answer; None for one that is no verdict."""
    metric: str
    """The one that counts."""
    weights: Mapping[str, float]
    """Weights of the categories in the overall score."""
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
    """The weighted sum of the categories; none if one is missing."""
    by_category = {score.category: score for score in scores if score.metric == edition.metric}
    if by_category.keys() != edition.weights.keys():
        return []
    value = sum(weight * by_category[category].value for category, weight in edition.weights.items())
    num_images = sum(score.num_images for score in by_category.values())
    return [Score(category=OVERALL, judge=edition.name, metric=edition.metric, num_images=num_images, value=value)]


def own_prompts() -> tuple[Prompt, ...]:
    """A few prompts of each category, none of them WISE's."""
    rows = [(category, text, right) for category in CATEGORIES for text, right in OWN[category]]
    return tuple(
        Prompt(text=text, category=category, data={"prompt_id": number, "explanation": right, "subcategory": "own"})
        for number, (category, text, right) in enumerate(rows, 1)
    )


def read_prompts(folder: str, files: WiseFiles) -> tuple[Prompt, ...]:
    """All prompts of an edition, in the order of their numbers. Raises UserError that names what is missing or wrong."""
    root = Path(folder).expanduser()
    found_in = next(
        (root / name for name in files.folders if (root / name / files.names[0]).is_file()), root / files.folders[0]
    )
    prompts = [prompt for name in files.names for prompt in _read(found_in / name, files, name)]
    return tuple(sorted(prompts, key=lambda prompt: int(prompt.data["prompt_id"])))


def first_of_each(prompts: Iterable[Prompt], count: int | None) -> tuple[Prompt, ...]:
    """The first `count` prompts of each category; None: all."""
    by_category = defaultdict(list)
    for prompt in prompts:
        by_category[prompt.category].append(prompt)
    return tuple(prompt for own in by_category.values() for prompt in islice(own, count))


def _instructions(edition: Edition, path: str | None) -> Instructions:
    return Instructions(messages=(("user", edition.instructions),)) if path is None else read_instructions(path)


def _differences(edition: Edition, config: EvaluateConfig, *, model: str, num_prompts: int) -> tuple[str, ...]:
    """Reasons why figures are not those that the leaderboard would show."""
    whole, found = edition.files.last_ids[CATEGORIES[-1]], []
    if config.wise.folder is None:
        found.append("our own prompts")
    elif num_prompts < whole:
        found.append(f"{num_prompts} of {whole} prompts")
    if model != edition.judge_model:
        found.append(f"{model} judges in place of {edition.judge_model}")
    if config.wise.instructions is None:
        found.append("our own instructions")
    elif Path(config.wise.instructions).suffix != ".py":
        found.append(f"instructions of {Path(config.wise.instructions).name}")
    if config.wise.judge.body:
        found.append("other settings of the judge")
    return tuple(found)


def _read(path: Path, files: WiseFiles, name: str) -> list[Prompt]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {_LACKS} not here") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): {_LACKS} damaged here") from error
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of prompts, found {type(rows).__name__}")
    prompts = [_prompt(row, f"{path}, row {number}", files) for number, row in enumerate(rows, 1)]
    found, expected = [prompt.data["prompt_id"] for prompt in prompts], files.ids(name)
    if sorted(found) != list(expected):
        missing = sorted(set(expected) - set(found))
        lacking = f"lacks prompt {missing[0]} and {len(missing) - 1} others" if missing else "has prompts that are not its own"
        raise UserError(f"{path} {lacking} of {expected[0]} to {expected[-1]}: {_LACKS} another edition or damaged here")
    return prompts


def _prompt(row: Any, where: str, files: WiseFiles) -> Prompt:
    number = row.get("prompt_id") if isinstance(row, dict) else None
    if not isinstance(number, int) or not 1 <= number <= files.last_ids[CATEGORIES[-1]]:
        raise UserError(f"{where}: expected an object with a prompt_id from 1 to 1000, found {str(row)[:80]}")
    texts = {name: row.get(field) for field, name in _FIELDS.items()}
    if lacking := [field for field, name in _FIELDS.items() if not (isinstance(texts[name], str) and texts[name].strip())]:
        raise UserError(f"{where}: expected text in {lacking[0]}, found {row.get(lacking[0])!r}")
    text = texts.pop("text").strip()
    return Prompt(text=text, category=files.category(number), data={"prompt_id": number, **texts})
