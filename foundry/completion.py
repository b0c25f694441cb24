"""Completion of `t2i` in a shell: a script with the names of all commands and of their options, made by shtab."""

import argparse
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import shtab

from foundry.command_line import options_of
from foundry.commands import COMMANDS
from foundry.reporting.lines import LogFormat

SHELLS: tuple[str, ...] = tuple(shtab.SUPPORTED_SHELLS)


def completion_script(shell: str) -> str:
    """The script for one of SHELLS, with the options of every command as they are now."""
    parser = argparse.ArgumentParser(prog="t2i")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        one = commands.add_parser(name, help=command.purpose)
        options = options_of(command.module)
        _add(one, "--config", str)
        _add(one, "--log_format", LogFormat)
        one.add_argument("--print_config", action="store_true")
        for option, hint in options.hints.items():
            _add(one, f"--{option}", hint)
        for option in options.positional:
            _add(one, option, options.hints[option])
    return shtab.complete(parser, shell)


def _add(parser: argparse.ArgumentParser, option: str, hint: Any) -> None:
    """An argument that completes to the values that its type names, or to files where it takes any text."""
    parts = _parts(hint)
    choices = [str(value) for part in parts if get_origin(part) is Literal for value in get_args(part)]
    if bool in parts:
        choices += ["true", "false"]
    action = parser.add_argument(option, choices=choices or None, nargs=None if option.startswith("--") else "*")
    if not choices and str in parts:
        action.complete = shtab.FILE  # type: ignore[attr-defined]


def _parts(hint: Any) -> list[Any]:
    """The types that a hint is made of: of a union its members, of a list or tuple those of its items."""
    if get_origin(hint) in (Union, UnionType, list, tuple):
        return [part for inner in get_args(hint) for part in _parts(inner)]
    return [hint]
