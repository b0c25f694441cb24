"""Command line of every command: a frozen dataclass is the configuration, jsonargparse parses it, an error is one line.

Preset < `--config file.yaml` < `--section.field value`; `--print_config` prints the whole. Exit codes: 0 done, 1 the budget
of failures was exceeded, 2 usage or configuration, 130 interrupted.

A field `name: str` becomes `--name`, a field that is a dataclass its own `--name.field` options; a list or tuple takes
several values, and where it may be None also none, which is an empty list; a bool needs none. The string under a field is its
help. A positional value is the same field unnamed.
A field without a default that names a model says in its metadata what to type where it is missing: see wording.ModelChoice.
A field whose option has a name that Python forbids says so in its metadata: `arms: … = field(metadata={OPTION: "try"})`.
"""

import argparse
import contextlib
import difflib
import json
import os
import re
import runpy
import select
import sys
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from docstring_parser import parse_from_object
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from foundry.commands import as_typed, extra_of
from foundry.errors import UserError, one_line
from foundry.extras import missing_library
from foundry.hardware import set_up_threads
from foundry.reporting.lines import LOG_FORMAT, LogFormat, asked_format, choose_format, say
from foundry.settings.yaml_text import load_yaml
from foundry.wording import model_choices, say_missing, say_type

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["OPTION", "UserError", "read_settings", "run_command"]
OPTION = "option"
"""The key of a field's metadata under which the name of its option is, where that is not the field's."""
ConfigT = TypeVar("ConfigT", bound="DataclassInstance")
Presets = Mapping[str, Mapping[str, Callable[[], "DataclassInstance"]]]
_MISSING = re.compile(r"the following arguments are required: (.+)")
_UNKNOWN_ARGUMENT = re.compile(r"unrecognized arguments: --([^\s=]+)")
_UNKNOWN_KEY = re.compile(r"(?:Group '(?P<group>.+?)' does not accept o|O)ption '(?P<key>.+?)'")
_DESCRIBED: ContextVar["list[Options] | None"] = ContextVar("described", default=None)
_WRONG_VALUE = re.compile(r'Parser key "(?P<key>[\w.]+)".*(?:Got value|Given value): (?P<value>.*)')


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a command: the type of each by its dotted name, and those that may be given by position."""

    hints: Mapping[str, Any]
    positional: Sequence[str]
    config_class: type["DataclassInstance"]
    texts: Mapping[str, str]
    """The string under each field of it."""
    presets: Presets
    example: str


def run_command(
    config_class: type[ConfigT],
    main: Callable[[ConfigT], int],
    *,
    prog: str,
    example: str,
    positional: Sequence[str] = (),
    presets: Presets | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Parses `argv` (default: sys.argv[1:]) into `config_class`, calls `main` and returns its exit code.

    `positional` names the fields that need no option; a list among them, the last, takes all that is left. `presets`
    maps a field to the functions that make the configuration for its values: {"stage": {"pixel": pixel_stage}}.
    A command with required fields prints its usage and the example when called without arguments, and returns 2.
    A wrong argument, a ValueError from `__post_init__`, a UserError from `main`, with the option of its setting, and a library
    that an extra of the distribution installs and that is missing become one line on stderr and 2;
    Ctrl-C returns 130; any other exception is a bug and keeps its traceback.
    """
    hints = _flat_hints(config_class)
    if (described := _DESCRIBED.get()) is not None:
        described.append(
            Options(
                hints={_option_name(name, config_class): hint for name, hint in hints.items()},
                positional=positional,
                config_class=config_class,
                texts=field_texts(config_class),
                presets=presets or {},
                example=example,
            )
        )
        return 0
    set_up_threads()
    choose_format(asked_format(sys.argv[1:] if argv is None else argv))
    arguments = _with_field_names(sys.argv[1:] if argv is None else argv, config_class)
    extra, prog, example = extra_of(prog.removeprefix("python -m ")), as_typed(prog), as_typed(example)
    parser = _build_parser(config_class, prog=prog, example=example, positional=positional)
    parser.description = as_typed((sys.modules[main.__module__].__doc__ or "").split("\n\n")[0])
    if not arguments and _required(config_class):
        print(f"{parser.format_usage()}{parser.epilog}\n{prog} --help explains the options", file=sys.stderr)
        return 2
    try:
        _check_files(arguments)
        parser.set_defaults(_preset_values(arguments, presets or {}))
        values = parser.parse_args(_name_all(arguments, hints | {LOG_FORMAT: LogFormat}, positional=positional))
    except argparse.ArgumentError as error:
        return _fail(_explain(str(error), config_class, prog=prog))
    except SystemExit as stop:  # --help and --print_config
        return int(stop.code or 0)
    choose_format(values[LOG_FORMAT])
    try:
        return _call(main, parser, config_class, values)
    except ModuleNotFoundError as error:
        if (missing := missing_library(error, preferred=extra)) is None:
            raise
        return _fail(str(missing))


def options_of(module: str) -> Options:
    """The options of the command that a module is, which is not started."""
    described: list[Options] = []
    token = _DESCRIBED.set(described)
    arguments, sys.argv[1:] = sys.argv[1:], []  # a command looks at them before it parses its own
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit:
        return described[0]
    finally:
        _DESCRIBED.reset(token)
        sys.argv[1:] = arguments
    raise AssertionError(f"{module} is no command")


def field_texts(config_class: type["DataclassInstance"]) -> dict[str, str]:
    """The string under each field, inherited fields too. Of a class of a command, only while that command runs."""
    classes = [one for one in reversed(config_class.__mro__) if is_dataclass(one)]
    return {param.arg_name: param.description or "" for one in classes for param in parse_from_object(one).params}


def read_settings(
    config_class: type[ConfigT], settings: Mapping[str, Any], *, prog: str, defaults: ConfigT | None = None
) -> ConfigT:
    """The configuration `defaults` with nested `settings` in its place, checked as a file of --config of the command `prog` is.

    Raises UserError for names and values that the command would refuse, and without `defaults` for settings that are missing.
    """
    parser = _build_parser(config_class, prog=prog, example="", positional=())
    if defaults is not None:
        parser.set_defaults(asdict(defaults))
    try:
        return _configuration(parser, config_class, parser.parse_object(dict(settings)))
    except argparse.ArgumentError as error:
        raise UserError(_explain(str(error), config_class, prog=prog)) from None
    except ValueError as error:
        raise UserError(str(error), setting=getattr(error, "setting", "")) from None


def _configuration(parser: ArgumentParser, config_class: type[ConfigT], values: Namespace) -> ConfigT:
    """Raises ValueError for values that the configuration refuses."""
    nested = parser.instantiate(values)
    return config_class(**{field.name: nested[field.name] for field in fields(config_class)})


def _call(main: Callable[[ConfigT], int], parser: ArgumentParser, config_class: type[ConfigT], values: Namespace) -> int:
    try:
        config = _configuration(parser, config_class, values)
    except ValueError as error:
        return _fail(f"{error}{_option(getattr(error, 'setting', ''), config_class)}")
    try:
        code = main(config)
        sys.stdout.flush()
    except UserError as error:
        return _fail(f"{error}{_option(error.setting, config_class)}")
    except KeyboardInterrupt:
        return _fail("interrupted", code=130)
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter fails at its exit
        return 0
    return code


def _option(setting: str, config_class: type["DataclassInstance"]) -> str:
    """The option of a setting, or of a group of them, in brackets; "" if this command has none."""
    known = any(name == setting or name.startswith(f"{setting}.") for name in _flat_hints(config_class)) if setting else False
    return f" (--{_option_name(setting, config_class)})" if known else ""


def _option_name(field_name: str, config_class: type["DataclassInstance"]) -> str:
    """The name of a field's option, which is the field's unless its metadata say otherwise."""
    return _renamed(config_class).get(field_name, field_name)


def _renamed(config_class: type["DataclassInstance"]) -> dict[str, str]:
    return {field.name: field.metadata[OPTION] for field in fields(config_class) if OPTION in field.metadata}


def _with_field_names(arguments: Sequence[str], config_class: type["DataclassInstance"]) -> list[str]:
    """The arguments with each option named as its field."""
    options = {f"--{option}": f"--{name}" for name, option in _renamed(config_class).items()}
    words = (word.partition("=") for word in arguments)
    return ["".join((options.get(name, name), equals, value)) for name, equals, value in words]


def _fail(message: str, *, code: int = 2) -> int:
    say(f"error: {as_typed(' '.join(message.split()))}", err=True)
    return code


def _reader_is_gone() -> bool:
    """Whether stdout is a pipe that its reader closed, as in `command | head`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return bool(poll.poll(0))


def _build_parser(
    config_class: type["DataclassInstance"], *, prog: str, example: str, positional: Sequence[str]
) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    hints = _flat_hints(config_class)
    metavars = {name: name.rpartition(".")[2].upper() + (" ..." if _is_list(hint) else "") for name, hint in hints.items()}
    required = _required(config_class)
    words = [metavars[name] if name in required else f"[{metavars[name]}]" for name in positional]
    words += [f"--{_option_name(name, config_class)} {metavars[name]}" for name in required if name not in positional]
    parser = ArgumentParser(
        prog=prog,
        usage=" ".join([prog, *words, "[options]"]),
        epilog=f"example: {example}",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the options; may be given several times.")
    parser.add_argument(
        f"--{LOG_FORMAT}",
        type=LogFormat,
        default="auto",
        help="Form of progress and messages: auto (bars on a terminal and in a notebook, else lines), plain (lines), or json "
        "(a JSON object for each line, with its event, time and numbers).",
    )
    parser.add_class_arguments(config_class, as_group=False)
    for action in parser._actions:
        action.help = as_typed(action.help) if action.help else action.help
        hint = hints.get(action.dest)
        if hint is bool:
            action.metavar = "[true|false]"
        elif _is_list(hint):
            action.metavar = metavars[action.dest]
            action.option_strings = [f"--{_option_name(action.dest, config_class)}"]  # without jsonargparse's `--name+`
    return parser


def _flat_hints(config_class: type["DataclassInstance"], prefix: str = "") -> dict[str, Any]:
    """The type of each field by its dotted name, nested dataclasses unfolded."""
    flat: dict[str, Any] = {}
    hints = get_type_hints(config_class)
    for field in fields(config_class):
        hint = hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint):
            flat |= _flat_hints(hint, f"{prefix}{field.name}.")
        else:
            flat[prefix + field.name] = hint
    return flat


def _required(config_class: type["DataclassInstance"]) -> list[str]:
    hints = get_type_hints(config_class)
    return [
        field.name
        for field in fields(config_class)
        if field.default is MISSING and field.default_factory is MISSING and not is_dataclass(hints[field.name])
    ]


def _is_list(hint: Any) -> bool:
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return any(get_origin(part) in (list, tuple) for part in parts)


def _name_all(arguments: Sequence[str], hints: Mapping[str, Any], *, positional: Sequence[str]) -> list[str]:
    """The arguments with every value as `--name=value`: a flag gets true, a list becomes one, a positional value gets its name.

    Raises argparse.ArgumentError for a list that is given twice and for a value too many.
    """
    named: list[str] = []
    by_position: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        hint = hints.get(name.removeprefix("--"))
        follows = next((index for index, other in enumerate(rest) if other.startswith("--")), len(rest))
        if word != "-h" and not word.startswith("--"):
            by_position.append(word)
        elif equals:
            named.append(f"{name}={_join([value], hint)}" if _is_list(hint) else word)
        elif hint is bool:
            named.append(f"{word}={rest.pop(0) if rest[:1] in (['true'], ['false']) else 'true'}")
        elif not follows and _is_list(hint) and NoneType in get_args(hint):
            named.append(f"{word}=[]")  # given without a value is not the same as left out
        elif follows and _is_list(hint):
            named.append(f"{word}={_join(rest[:follows], hint)}")
            del rest[:follows]
        elif follows and (hint is not None or word == "--config" or any(key.startswith(f"{name[2:]}.") for key in hints)):
            named.append(f"{word}={rest.pop(0)}")
        else:
            named.append(word)
            if hint is None:  # an unknown option: its value is no separate argument, or the complaint would be about that
                del rest[:follows]
    named += _name_by_position(by_position, hints, positional=positional)
    once = [name for name in (word.partition("=")[0] for word in named) if _is_list(hints.get(name.removeprefix("--")))]
    if len(once) > len(set(once)):
        raise argparse.ArgumentError(None, f"{max(once, key=once.count)} is given twice: give it once, with all its values")
    return named


def _name_by_position(values: list[str], hints: Mapping[str, Any], *, positional: Sequence[str]) -> list[str]:
    named: list[str] = []
    for index, name in enumerate(positional):
        if values[index:] and _is_list(hints[name]):
            return [*named, f"--{name}={_join(values[index:], hints[name])}"]
        if values[index:]:
            named.append(f"--{name}={values[index]}")
    if len(values) > len(positional):
        raise argparse.ArgumentError(None, f"unexpected argument {values[len(positional)]!r}")
    return named


def _join(values: Sequence[str], hint: Any) -> str:
    """One YAML list; a single value that is one already stays as it is."""
    if len(values) == 1 and values[0].startswith("[") and values[0].endswith("]"):
        return values[0]
    numbers = any({int, float} & set(get_args(part)) for part in (hint, *get_args(hint)))
    return f"[{', '.join(values)}]" if numbers else json.dumps(values)


def _preset_values(arguments: Sequence[str], presets: Presets) -> dict[str, Any]:
    """The defaults that the presets chosen in the arguments, else in the files, give; nested fields by dotted name."""
    values: dict[str, Any] = {}
    for name, choices in presets.items():
        early = _early_parser()
        early.add_argument(f"--{name}", dest="chosen")
        given, _ = early.parse_known_args(arguments)
        chosen = given.chosen or next(filter(None, (_file_value(path, name) for path in reversed(given.config))), None)
        if isinstance(chosen, str) and chosen in choices:
            values |= asdict(choices[chosen]())
    return values


def _early_parser() -> argparse.ArgumentParser:
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--config", action="append", default=[])
    return early


def _check_files(arguments: Sequence[str]) -> None:
    """Raises ArgumentError for a file that is no YAML or repeats too much of itself, in which the parser would be lost."""
    for path in _early_parser().parse_known_args(arguments)[0].config:
        try:
            with contextlib.suppress(OSError):
                load_yaml(Path(path).read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError) as error:
            raise argparse.ArgumentError(None, f"{path} is not valid YAML ({one_line(error)}): correct the file") from None


def _file_value(path: str, name: str) -> Any:
    with contextlib.suppress(OSError):  # the parser says what is wrong with the file
        content = load_yaml(Path(path).read_text(encoding="utf-8"))
        return content.get(name) if isinstance(content, dict) else None


def _explain(message: str, config_class: type["DataclassInstance"], *, prog: str) -> str:
    """jsonargparse's message as one line that says what to do; an unknown name comes with the nearest known one."""
    text = " ".join(message.split())
    hints = _flat_hints(config_class) | {LOG_FORMAT: LogFormat}
    if missing := _MISSING.search(text):
        names = [_option_name(name, config_class) for name in missing[1].split(", ")]
        said = say_missing(config_class, names)
        return said if set(names) <= model_choices(config_class).keys() else f"{said}; see {prog} --help"
    if (wrong := _WRONG_VALUE.search(text)) and wrong["key"] in hints:
        return f"--{wrong['key']}: expected {say_type(hints[wrong['key']])}, found {wrong['value']}; see {prog} --help"
    if argument := _UNKNOWN_ARGUMENT.search(text):
        unknown = argument[1]
    elif key := _UNKNOWN_KEY.search(text):
        unknown = ".".join(filter(None, (key["group"], key["key"])))
    else:
        return f"{text}; see {prog} --help"
    near = difflib.get_close_matches(unknown, list(hints), n=1, cutoff=0.5)
    return f"unknown option {unknown}; " + (f"did you mean --{near[0]}?" if near else f"see {prog} --help")
