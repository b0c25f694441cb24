"""Console script `t2i`: one name for all commands; `t2i caption …` is `python -m captioner.run …`."""

import difflib
import os
import runpy
import sys
from collections.abc import Sequence

from foundry.commands import COMMANDS, JOBS, STARTED_BY_T2I
from foundry.reporting.lines import asked_format, choose_format, say

_COMPLETION = "--print_completion"
_USAGE = "usage: t2i COMMAND [options]"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first of `argv` (default: sys.argv[1:]) names, which ends in the SystemExit of its module.

    Returns 0 for what t2i answers itself; 2 without a name, which prints the list of commands, and for an unknown one, with
    the nearest that there is.
    """
    name, *arguments = given = (list(sys.argv[1:]) if argv is None else list(argv)) or [""]
    choose_format(asked_format(given))
    if name in COMMANDS:
        _run(name, arguments)
    elif name in ("-h", "--help"):
        print(_help())
    elif name == "--version":
        print(_version())
    elif name == _COMPLETION:
        return _print_completion(arguments)
    elif not name:
        print(_help(), file=sys.stderr)
        return 2
    else:
        return _fail(f"there is no command {name}: {_nearest(name)}")
    return 0


def _run(name: str, arguments: list[str]) -> None:
    """Runs the command's module as `python -m` does, but that modules of the working folder hide none that are installed."""
    folder = os.getcwd()
    if not sys.flags.safe_path and not {"", folder} & set(sys.path):
        sys.path.append(folder)  # users name their own benchmarks by module
    sys.argv[1:] = arguments
    token = STARTED_BY_T2I.set(True)
    try:
        runpy.run_module(COMMANDS[name].module, run_name="__main__", alter_sys=True)
    finally:
        STARTED_BY_T2I.reset(token)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [_USAGE, ""]
    for job, commands in JOBS.items():
        lines += [job, *(f"  {name:{width}}  {command.purpose}" for name, command in commands.items()), ""]
    return "\n".join(
        [
            *lines,
            "t2i COMMAND --help explains a command; python -m MODULE runs the same one.",
            f"t2i --version prints the version; t2i {_COMPLETION} bash (or zsh, fish, tcsh) prints a script for that shell.",
        ]
    )


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    from foundry.extras import DISTRIBUTION

    try:
        return f"{DISTRIBUTION} {version(DISTRIBUTION)}"
    except PackageNotFoundError:
        return f"{DISTRIBUTION}, a checkout that is not installed"


def _print_completion(arguments: list[str]) -> int:
    from foundry.completion import SHELLS, completion_script

    if len(arguments) != 1 or arguments[0] not in SHELLS:
        found = " ".join(arguments) or "nothing"
        return _fail(f"{_COMPLETION}: expected one of {', '.join(SHELLS)}, found {found}: type t2i {_COMPLETION} bash")
    print(completion_script(arguments[0]))
    return 0


def _nearest(name: str) -> str:
    modules = {command.module: other for other, command in COMMANDS.items()}
    known = name.removesuffix(".py").replace("/", ".")
    near = [modules[known]] if known in modules else difflib.get_close_matches(name.replace("_", "-"), COMMANDS, n=1)
    return f"did you mean t2i {near[0]}?" if near else "t2i --help lists the commands"


def _fail(message: str) -> int:
    say(f"error: {message}", err=True)
    return 2
