"""Lines that a command prints while it works, plain or as JSON; the option --log_format of every command chooses.

What a command answers (a table, JSON, SQL) is not said but printed, and is the same in every format.
"""

import argparse
import json
import logging
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

LOG_FORMAT = "log_format"
"""Name of the option."""
LogFormat = Literal["auto", "plain", "json"]
"""auto: bars on a terminal and in a notebook, lines elsewhere; plain: lines; json: a JSON object for each line."""
_KINDS = ("error", "warning")


@dataclass
class Output:
    """How this process reports. Bars and lines share it, since lines are printed above the bar."""

    format: LogFormat = "auto"
    consoles: list[Any] = field(default_factory=list)
    """Consoles of the bars that a terminal shows, the newest last."""


OUTPUT = Output()
_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def asked_format(arguments: Sequence[str]) -> LogFormat:
    """The format that a command's arguments ask for, before they are parsed: an error in them has it too."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument(f"--{LOG_FORMAT}", dest="chosen", nargs="?", default="auto")
    given, _ = early.parse_known_args(list(arguments))
    return given.chosen if given.chosen in get_args(LogFormat) else "auto"


def choose_format(chosen: LogFormat) -> None:
    """Says how this process reports from now on. In JSON, what libraries log and warn of is JSON too."""
    OUTPUT.format = chosen
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _JsonHandler)]:
        root.removeHandler(handler)
    if chosen == "json":
        root.addHandler(_JsonHandler())
    logging.captureWarnings(chosen == "json")


def visible(text: str) -> str:
    """A text whose control, bidirectional and unpaired characters are written out, so that no terminal obeys them."""
    return _HIDDEN.sub(lambda found: repr(found[0])[1:-1], text)


def say(line: str, *, err: bool = False) -> None:
    """Prints a line; `err`: on stderr. In JSON its event is error, warning (by how it begins) or message."""
    stream, line = sys.stderr if err else sys.stdout, visible(line)
    if OUTPUT.format == "json":
        kind, _, rest = line.partition(": ")
        report(kind if kind in _KINDS else "message", err=err, text=rest if kind in _KINDS else line)
    elif OUTPUT.consoles and stream.isatty():
        OUTPUT.consoles[-1].print(line, markup=False, highlight=False, soft_wrap=True)
    else:
        print(line, file=stream, flush=True)


def report(event: str, *, err: bool = False, **facts: Any) -> None:
    """Prints an event with its time and facts as a line of JSON; nothing in the other formats, which have lines for people."""
    if OUTPUT.format == "json":
        row = {"event": event, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **facts}
        print(json.dumps(_finite(row), ensure_ascii=False), file=sys.stderr if err else sys.stdout, flush=True)


def _finite(value: Any) -> Any:
    """NaN and infinity as null: JSON has neither."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _JsonHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """A record as an event, on stderr."""
        report(record.levelname.lower(), err=True, text=record.getMessage().strip(), logger=record.name)
