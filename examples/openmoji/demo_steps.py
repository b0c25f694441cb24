"""Steps of the demo: commands that a user could type, run in order; which are done and how long they took is kept.

The first step that is not done yet is run, and all after it: whatever they find done themselves, they do not do again.
What was made with other settings is not gone on with: the user is told to remove it, or to name another folder.
"""

import hashlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset_builder.command_line import UserError
from model.new_files import new_file

LOG = "steps.jsonl"
_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command of the foundry."""

    title: str
    """What it does, for the reader."""
    module: str
    """What stands after `python -m`."""
    arguments: tuple[str, ...]
    """What stands after the module."""
    output: Path | None = None
    """The file or folder that it writes; None: it only prints."""

    @property
    def command(self) -> str:
        """As a user would type it."""
        return f"python -m {shlex.join((self.module, *self.arguments))}"


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """How long a step took."""

    title: str
    command: str
    seconds: float
    """Of all attempts with these settings; of one that was killed nothing is known."""


def run_steps(folder: Path, steps: Sequence[Step]) -> None:
    """Runs the first step that is not done and all after it, and keeps in `folder` what was run.

    Raises UserError where a step fails, and before any is run where an output was made with other settings of its step or of
    one before it; KeyboardInterrupt on Ctrl-C.
    """
    log = folder / LOG
    last = {row["title"]: (row["identity"], row["code"]) for row in _rows(log)}
    found = [last.get(step.title, ("", None)) for step in steps]
    planned = list(zip(steps, _identities(steps), found, strict=True))
    _refuse_outputs([step for step, identity, (made_with, _) in planned if made_with != identity])
    skips = True
    for step, identity, done in planned:
        print(f"\n== {step.title}\n$ {step.command}", flush=True)
        skips = skips and done == (identity, 0) and (step.output is None or step.output.exists())
        if skips:
            print("-- done before", flush=True)
        else:
            _run(step, identity, log)


def read_times(folder: Path) -> list[StepTime]:
    """The steps that were run to an end, in order, as they were given last."""
    rows = [row for row in _rows(folder / LOG) if row["code"] is not None]
    last = {row["title"]: row for row in rows}
    return [
        StepTime(
            title=title,
            command=newest["command"],
            seconds=sum(row["seconds"] for row in rows if row["identity"] == newest["identity"]),
        )
        for title, newest in last.items()
    ]


def duration(seconds: float) -> str:
    """As a person would say it: 8 s, 2 min 05 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _identities(steps: Iterable[Step]) -> Iterator[str]:
    """Of each step: a hash of its command, of the configurations that it names, and of both for each output before it."""
    before = hashlib.sha256()
    for step in steps:
        digest = before if step.output else before.copy()
        digest.update(step.command.encode())
        for word in step.arguments:
            if word.endswith(".yaml") and Path(word).is_file():
                digest.update(Path(word).read_bytes())
        yield digest.hexdigest()[:16]


def _refuse_outputs(steps: Sequence[Step]) -> None:
    """Raises UserError where one of these steps, whose settings are new, has an output."""
    if there := [step for step in steps if step.output and step.output.exists()]:
        raise UserError(
            f"{there[0].output} was not made with the settings that the step «{there[0].title}» has now: "
            f"give another --out, or remove {' '.join(str(step.output) for step in there)}"
        )


def _run(step: Step, identity: str, log: Path) -> None:
    """Writes a row when the step starts, since it may be killed, and one when it ends."""
    row = {"title": step.title, "command": step.command, "identity": identity}
    _add_row(log, {**row, "code": None, "seconds": 0.0})
    started = time.perf_counter()
    code = _call(step)
    seconds = time.perf_counter() - started
    _add_row(log, {**row, "code": code, "seconds": seconds})
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise UserError(f"the step «{step.title}» ended with exit code {code}: mend what it says, then give this again")
    print(f"-- {seconds:.0f} s", flush=True)


def _call(step: Step) -> int:
    """The exit code. After Ctrl-C, which the command gets as well, it is waited for: a training saves what it has."""
    process = subprocess.Popen([sys.executable, "-m", step.module, *step.arguments])
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        return _INTERRUPTED


def _add_row(log: Path, row: dict[str, Any]) -> None:
    with new_file(log) as partial:
        partial.write_text("".join(json.dumps(one) + "\n" for one in (*_rows(log), row)), encoding="utf-8")


def _rows(log: Path) -> list[dict[str, Any]]:
    """Without a last line that was cut off."""
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
