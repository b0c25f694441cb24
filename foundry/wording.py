"""Wording of what commands say: numbers with their nouns, what to type where a model is not named, what a URL must not hold.

Apart from command_line.py, so that workers, which run jobs and parse nothing, need no jsonargparse.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CHOICE = "choice"
"""The key of a field's metadata under which its ModelChoice is."""


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Advice on what to type if a model is not named: `name: str = field(metadata={CHOICE: ModelChoice(real=…)})`.

    Such a field has no default, so that the small world's toy, `mini`, never runs by accident.
    """

    real: str
    """The value for real data."""
    what: str = "a real model"
    """Description of that value."""
    toy: str = "only understands 64-pixel emoji scenes"
    """Description of what `mini` does."""


def say_missing(config_class: type["DataclassInstance"], names: Sequence[str]) -> str:
    """The error for options, by dotted name, that were not given: which, and what to type for those that name a model."""
    known = model_choices(config_class)
    choices = {name: known[name] for name in names if name in known}
    text = f"{' and '.join(f'--{name}' for name in names)} {'is' if len(names) == 1 else 'are'} missing"
    if not choices:
        return text
    real = " ".join(f"--{name} {choice.real}" for name, choice in choices.items())
    toys = " ".join(f"--{name} mini" for name in choices)
    first = next(iter(choices.values()))
    return f"{text}: type {real} for {first.what}, or {toys} for the toy, which {first.toy}"


def model_choices(config_class: type["DataclassInstance"], prefix: str = "") -> dict[str, ModelChoice]:
    """The ModelChoice of each field that has one, by its dotted name."""
    found: dict[str, ModelChoice] = {}
    hints = get_type_hints(config_class)
    for field in fields(config_class):
        if CHOICE in field.metadata:
            found[prefix + field.name] = field.metadata[CHOICE]
        elif is_dataclass(hints[field.name]):
            found |= model_choices(hints[field.name], f"{prefix}{field.name}.")
    return found


def counted(number: int, noun: str) -> str:
    """`1 unit`, `2 units`: for nouns whose plural ends in s."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """`31 s`, `4 min 05 s`, `2 h 13 min`, `3 d 4 h`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def url_problems(url: str, *, setting: str) -> list[str]:
    """Faults of an endpoint's URL, which must not hold a key; `setting` is its name, such as judge.url."""
    address = urlsplit(url)
    problems = []
    if address.scheme not in ("http", "https") or not address.hostname:
        problems.append(f"{setting} must be http:// or https:// with a host")
    if address.username or address.password or address.query or address.fragment:
        variable = f"{setting.removesuffix('url')}key_variable"
        problems.append(f"{setting} must hold no user, password, query or fragment: name the key's variable in {variable}")
    return problems


_VALUES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path", NoneType: "null"}
_COLLECTIONS = (list, tuple, set, frozenset, Sequence)


def say_type(hint: Any) -> str:
    """What an option of a type takes, as people say it: 'auto, float32 or bfloat16', 'a whole number or null'."""
    kind, arguments = get_origin(hint), [argument for argument in get_args(hint) if argument is not Ellipsis]
    if kind is Literal:
        return _either([str(value) for value in arguments])
    if kind in (Union, UnionType):
        return _either([say_type(argument) for argument in arguments])
    if kind in _COLLECTIONS:
        return f"a list, each {_either(list(dict.fromkeys(say_type(argument) for argument in arguments)))}"
    if kind is dict:
        return f"names with values, each {say_type(arguments[1])}"
    return _VALUES.get(hint) or str(getattr(hint, "__name__", hint))


def _either(parts: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
