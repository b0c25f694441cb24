"""Functions that take the options of a command as keyword arguments, checked as the command checks them.

    @takes_options(CaptionConfig, command="captioner.run")
    def caption(options: CaptionConfig) -> Run: ...

    caption(images=["photos"], out="runs/photos", model="mini", generation={"max_new_tokens": 200})

A type checker and an editor see the fields of the configuration. Beyond their types, a function takes a `Path`, a run or a data
set for a string, one value for a list of one, and a mapping for a group of options, of which the others keep their defaults.
"""

import difflib
import functools
import inspect
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, get_args, get_origin, get_type_hints, overload

from foundry.command_line import field_texts, read_settings
from foundry.commands import extra_of
from foundry.errors import UserError
from foundry.extras import missing_library
from foundry.hardware import set_up_threads

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_LONG_LIST = 100
"""Number of strings in a list from which on the parser sees the first one alone: its time grows with the square."""
P = ParamSpec("P")
ConfigT = TypeVar("ConfigT", bound="DataclassInstance")
ResultT = TypeVar("ResultT")


@overload
def takes_options(
    config_class: Callable[P, ConfigT], *, command: str
) -> Callable[[Callable[[ConfigT], ResultT]], Callable[P, ResultT]]: ...


@overload
def takes_options(
    config_class: Callable[P, object], *, command: str, read: Callable[[dict[str, Any]], ConfigT]
) -> Callable[[Callable[[ConfigT], ResultT]], Callable[P, ResultT]]: ...


def takes_options(
    config_class: Callable[P, Any], *, command: str, read: Callable[[dict[str, Any]], ConfigT] | None = None
) -> Callable[[Callable[[ConfigT], ResultT]], Callable[P, ResultT]]:
    """Turns a function of a configuration into one of its fields, which are the options of `command`, a module.

    `read` makes the configuration of the options that were given; default: by the checks of the command line. The function
    raises UserError where the command would print that line; also for a library that an extra installs and that is missing.
    """
    chosen = cast("type[ConfigT]", config_class)

    def decorate(function: Callable[[ConfigT], ResultT]) -> Callable[P, ResultT]:
        @functools.wraps(function)
        def with_options(*args: P.args, **options: P.kwargs) -> ResultT:
            if args:
                first = fields(chosen)[0].name
                raise UserError(f"{function.__name__}() takes its options by name, such as {first}=…, and found {args[0]!r}")
            with explained_extras(extra_of(command)):
                set_up_threads()
                make = read or functools.partial(read_options, chosen, command=command)
                return function(make(dict(options)))

        signature = inspect.signature(chosen)
        result = inspect.signature(function).return_annotation
        with_options.__signature__ = signature.replace(return_annotation=result)  # type: ignore[attr-defined]
        with_options.__doc__ = f"{function.__doc__}\n\n{_options_text(chosen, command)}"
        return with_options

    return decorate


def checks_names(function: Callable[P, ResultT]) -> Callable[P, ResultT]:
    """Has a function raise UserError, with the nearest names, for keyword arguments that it does not have."""
    known = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def checked(*args: P.args, **options: P.kwargs) -> ResultT:
        if unknown := next((name for name in options if name not in known), None):
            near = difflib.get_close_matches(unknown, known, n=1)
            advice = f"did you mean {near[0]}?" if near else f"its options are {', '.join(known)}"
            raise UserError(f"{function.__name__}() has no option {unknown}: {advice}")
        return function(*args, **options)

    return checked


def read_options(
    config_class: type[ConfigT], options: Mapping[str, Any], *, command: str, defaults: ConfigT | None = None
) -> ConfigT:
    """The configuration of these options, checked as those of the command. Raises UserError."""
    hints = get_type_hints(config_class)
    given = {name: _plain(value, hints.get(name)) for name, value in options.items()}
    long = {name: value for name, value in given.items() if _is_long(value)}
    short = {name: value[:1] if name in long else value for name, value in given.items()}
    config = read_settings(config_class, short, defaults=defaults, prog=f"python -m {command}")
    return replace(config, **{name: type(getattr(config, name))(value) for name, value in long.items()}) if long else config


@contextmanager
def explained_extras(extra: str) -> Iterator[None]:
    """Turns a library that is missing into a UserError that says what to install: `extra`, or the smallest that has it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (missing := missing_library(error, preferred=extra)) is None:
            raise
        raise missing from None


def _plain(value: Any, hint: Any = None) -> Any:
    """The value as a file of settings has it: a path as a string, a configuration as a mapping, one value as a list of one."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    plain = os.fspath(value) if isinstance(value, os.PathLike) else value
    is_list = any(get_origin(part) in (list, tuple) for part in (hint, *get_args(hint)))
    return [plain] if is_list and plain is not None else plain


def _is_long(value: Any) -> bool:
    return isinstance(value, list) and len(value) > _LONG_LIST and all(isinstance(item, str) for item in value)


def _options_text(config_class: type["DataclassInstance"], command: str) -> str:
    """What each option is, for help()."""
    texts = field_texts(config_class)
    lines = [f"Options, those of `python -m {command}`:"]
    for name in (field.name for field in fields(config_class)):
        text = " ".join(texts.get(name, "").split())
        lines += [f"    {name}", textwrap.fill(text, 100, initial_indent=" " * 8, subsequent_indent=" " * 8)]
    return "\n".join(lines)
