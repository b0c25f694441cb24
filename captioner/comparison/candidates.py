"""Candidates of a comparison: a run and one of its prompts each, and what was recorded of them."""

import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dataset_builder.json_text import words_of_json
from dataset_builder.sql.run_files import RunFiles, read_plans, read_run
from dataset_builder.sql.views import literal
from foundry.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A captioner with a prompt. `run` is the index of its run among those that are compared."""

    index: int
    run: int
    source: str
    prompt: str
    files: RunFiles

    @property
    def letter(self) -> str:
        """The letter that tables and the page call it by."""
        return string.ascii_uppercase[self.index]

    @property
    def captions(self) -> str:
        """SQL of its rows in the run's captions, as one of open_workbench's relations."""
        return f"(SELECT * FROM run_{self.run}.captions WHERE prompt = {literal(self.prompt)})"

    @property
    def is_json(self) -> bool:
        """Whether its captions are JSON of a schema."""
        return self.prompt in self.files.record.structured_prompts

    def words(self, caption: str) -> str:
        """A caption of it with all but its words blanked out, character by character: of JSON its values, of prose all."""
        return words_of_json(caption) if self.is_json else caption

    def readable(self, caption: str) -> str:
        """A caption of it for people: JSON with a space after each comma and colon, prose as it is."""
        return json.dumps(json.loads(caption), ensure_ascii=False) if self.is_json else caption

    @property
    def model(self) -> str:
        """The name of the model, and the engine that ran it where that was recorded."""
        settings = self.files.settings
        name = settings.get("model", {}).get("name", "unknown model")
        engine = settings.get("engine", "")
        return f"{name} by {engine}" if engine in ("vllm", "endpoint") else str(name)


def find_candidates(sources: Sequence[str], *, prompts: Sequence[str] = ()) -> list[Candidate]:
    """Each prompt of each run, or those named in `prompts`. Raises UserError for fewer than two, or too many."""
    _check_distinct(sources)
    runs = [read_run(source) for source in sources]
    known = [run.record.prompt_names for run in runs]
    every = list(dict.fromkeys(name for names in known for name in names))
    if unknown := [name for name in prompts if name not in every]:
        raise UserError(f"no run has the prompt {unknown[0]}: there are {', '.join(every)}", setting="prompts")
    found: list[Candidate] = []
    for number, (source, run, names) in enumerate(zip(sources, runs, known, strict=True)):
        chosen = [name for name in names if not prompts or name in prompts]
        if not chosen:
            raise UserError(
                f"{source} has none of the prompts asked for: it has {', '.join(names) or 'no prompts'}", setting="prompts"
            )
        found += [
            Candidate(index=len(found) + index, run=number, source=source, prompt=name, files=run)
            for index, name in enumerate(chosen)
        ]
    if not 2 <= len(found) <= len(string.ascii_uppercase):
        what = ", ".join(f"{one.source} with the prompt {one.prompt}" for one in found[:3])
        raise UserError(
            f"expected 2 to {len(string.ascii_uppercase)} captioners to compare, found {len(found)} ({what}): "
            "give several runs over the same images, or a run with several prompts",
            setting="runs",
        )
    return found


def short_names(candidates: Sequence[Candidate]) -> list[str]:
    """Names that tell the candidates apart: the last part of the run's path where that is enough, and the prompt."""
    last = {one.source: one.source.rstrip("/").rpartition("/")[2] for one in candidates}
    is_clear = len(set(last.values())) == len(last)
    return [f"{last[one.source] if is_clear else one.source} {one.prompt}" for one in candidates]


def rivals(candidates: Sequence[Candidate]) -> list[list[int]]:
    """Candidates that may confirm what each candidate says: of the other runs, or the other prompts of the only run.

    A model that confirms itself under another prompt is no witness, so the prompts of one run count only where all are of it.
    """
    is_one_run = len({one.run for one in candidates}) == 1
    return [
        [other.index for other in candidates if other.index != one.index and (is_one_run or other.run != one.run)]
        for one in candidates
    ]


def unfinished(candidates: Sequence[Candidate]) -> list[str]:
    """A line for each run that has not captioned or rejected all images of its plan."""
    lines = []
    for one in {one.run: one for one in candidates}.values():
        planned = sum(part.rows for plan in read_plans(one.files.folder) for part in plan.parts)
        done = sum(commit.planned for commit in one.files.commits)
        if done < planned:
            lines.append(f"{one.source} is not finished: {done:,} of {planned:,} images are; what is committed is compared.")
    return lines


def counted_differently(candidates: Sequence[Candidate]) -> list[str]:
    """Which of `tagger` and `t5` differ between the runs; empty if their counts can be compared."""
    described = [one.files.settings for one in {one.run: one for one in candidates}.values()]
    return [
        name
        for name in ("tagger", "t5")
        if not all(_agree(described[0].get(name, {}), other.get(name, {})) for other in described)
    ]


def _agree(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two descriptions say the same, as far as both say it: older runs say less."""
    both = one.keys() & other.keys()
    return bool(both) and all(one[name] == other[name] for name in both)


def _check_distinct(sources: Sequence[str]) -> None:
    given = [source.rstrip("/") for source in sources]
    if repeated := next((source for source in given if given.count(source) > 1), None):
        raise UserError(f"{repeated} is given twice: give each run once; its prompts are compared with each other")
