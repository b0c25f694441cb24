"""The prompts of GenEval with what each asks for, from the user's own copy, or a few that we wrote for a first try.

Source: the authors' repository keeps them in prompts/evaluation_metadata.jsonl, an object a line: `tag` is the task, `include`
the classes that have to be there, `exclude` those that must not.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.errors import UserError
from trainer.evaluation.benchmark import Prompt

TASKS: Mapping[str, int] = {
    "single_object": 80,
    "two_object": 99,
    "counting": 80,
    "colors": 94,
    "position": 100,
    "color_attr": 100,
}
"""Tasks with the number of their prompts."""
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
POSITIONS = ("left of", "right of", "above", "below")
FILE = "evaluation_metadata.jsonl"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A class that has to be there."""

    name: str
    count: int
    color: str | None = None
    position: str | None = None
    """One of POSITIONS, of the class number `target` of the prompt."""
    target: int | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The requirements of a prompt."""

    include: tuple[Wanted, ...]
    exclude: tuple[tuple[str, int], ...] = ()
    """Classes with a number of objects that an image must stay below."""

    @property
    def names(self) -> list[str]:
        """The classes to look for, each once."""
        return list(dict.fromkeys([*(one.name for one in self.include), *(name for name, _ in self.exclude)]))


def asked_of(data: Mapping[str, Any]) -> Asked:
    """Reads GenEval's own form. Raises ValueError, KeyError or TypeError for another."""
    include = tuple(_wanted(one, number) for number, one in enumerate(data["include"]))
    if not include:
        raise ValueError("nothing to include")
    return Asked(include=include, exclude=tuple((str(one["class"]), int(one["count"])) for one in data.get("exclude", ())))


def our_prompts() -> tuple[Prompt, ...]:
    """A few prompts of each task, for a first try."""
    owl, drum, kettle, boat = (_include(name) for name in ("owl", "drum", "kettle", "boat"))
    return (
        _prompt("single_object", "a photo of an owl", owl),
        _prompt("single_object", "a photo of a kettle", kettle),
        _prompt("two_object", "a photo of an owl and a drum", owl, drum),
        _prompt("two_object", "a photo of a boat and a kettle", boat, kettle),
        _prompt("counting", "a photo of two owls", _include("owl", 2), exclude=_include("owl", 3)),
        _prompt("counting", "a photo of three drums", _include("drum", 3), exclude=_include("drum", 4)),
        _prompt("colors", "a photo of a red kettle", _include("kettle", color="red")),
        _prompt("colors", "a photo of a white owl", _include("owl", color="white")),
        _prompt("position", "a photo of an owl left of a drum", drum, _include("owl", position=["left of", 0])),
        _prompt("position", "a photo of a boat below a kettle", kettle, _include("boat", position=["below", 0])),
        _prompt(
            "color_attr",
            "a photo of a blue boat and a yellow drum",
            _include("boat", color="blue"),
            _include("drum", color="yellow"),
        ),
        _prompt(
            "color_attr",
            "a photo of a green owl and a black kettle",
            _include("owl", color="green"),
            _include("kettle", color="black"),
        ),
    )


def read_prompts(folder: Path) -> tuple[Prompt, ...]:
    """All prompts of a copy of the repository, or of its prompts/. Raises UserError that names the file, and the line in it."""
    path = next((file for file in (folder / "prompts" / FILE, folder / FILE) if file.is_file()), None)
    if path is None:
        raise UserError(
            f"{folder / 'prompts' / FILE} does not exist: give a complete copy of GenEval's repository",
            setting="geneval.folder",
        )
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        if line.strip():
            try:
                prompts.append(_read(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path}, line {number}: not a prompt of GenEval ({type(error).__name__}: {error})") from None
    if not prompts:
        raise UserError(f"{path} is empty: give a complete copy of GenEval's repository", setting="geneval.folder")
    return tuple(prompts)


def _read(line: str) -> Prompt:
    row = json.loads(line)
    if row["tag"] not in TASKS:
        raise ValueError(f"tag {row['tag']}, expected one of {', '.join(TASKS)}")
    asked_of(row)
    return Prompt(
        text=row["prompt"], category=row["tag"], data={name: row[name] for name in ("include", "exclude") if name in row}
    )


def _wanted(one: Mapping[str, Any], number: int) -> Wanted:
    position, target = one.get("position", (None, None))
    if position is not None and not (position in POSITIONS and 0 <= target < number):
        raise ValueError(f"position {one['position']}")
    if one.get("color") not in (None, *COLORS):
        raise ValueError(f"color {one['color']}")
    return Wanted(name=str(one["class"]), count=int(one["count"]), color=one.get("color"), position=position, target=target)


def _include(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


def _prompt(task: str, text: str, *include: dict[str, Any], exclude: dict[str, Any] | None = None) -> Prompt:
    return Prompt(text=text, category=task, data={"include": list(include), **({"exclude": [exclude]} if exclude else {})})
