"""Steps of the demo: commands that a user could type, run in order; which are done and how long they took is kept.

The first step that is not done yet is run, and all after it: whatever they find done themselves, they do not do again.
"""

import hashlib
import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset_builder.command_line import UserError

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
    """What it leaves behind; None: it only prints."""

    @property
    def command(self) -> str:
        """As a user would type it."""
        return f"python -m {shlex.join((self.module, *self.arguments))}"

    @property
    def identity(self) -> str:
        """A hash of the command and of the configurations that it names."""
        digest = hashlib.sha256(self.command.encode())
        for word in self.arguments:
            if word.endswith(".yaml") and Path(word).is_file():
                digest.update(Path(word).read_bytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """How long a step took."""

    title: str
    command: str
    seconds: float
    """Of all attempts, those that were interrupted too."""


class StepRunner:
    """Runs steps, and writes a line for each attempt to steps.jsonl."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / LOG
        self._skips = True

    def run(self, step: Step) -> None:
        """Runs a step, unless it and all before it are done. Raises UserError where it fails, KeyboardInterrupt on Ctrl-C."""
        print(f"\n== {step.title}\n$ {step.command}", flush=True)
        self._skips = self._skips and self._is_done(step)
        if self._skips:
            print("-- done before", flush=True)
            return
        started = time.perf_counter()
        code = _call(step)
        seconds = time.perf_counter() - started
        self._write(step, code=code, seconds=seconds)
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            raise UserError(f"the step «{step.title}» ended with exit code {code}: mend what it says, then give this again")
        print(f"-- {seconds:.0f} s", flush=True)

    def _is_done(self, step: Step) -> bool:
        is_there = step.output is None or step.output.exists()
        return is_there and any(row["identity"] == step.identity and row["code"] == 0 for row in _rows(self._log))

    def _write(self, step: Step, *, code: int, seconds: float) -> None:
        row = {"title": step.title, "command": step.command, "identity": step.identity, "code": code, "seconds": seconds}
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_times(folder: Path) -> list[StepTime]:
    """The steps that were run, in order, as they were given last."""
    rows = _rows(folder / LOG)
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


def _call(step: Step) -> int:
    """The exit code. After Ctrl-C, which the command gets as well, it is waited for: a training saves what it has."""
    process = subprocess.Popen([sys.executable, "-m", step.module, *step.arguments])
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        return _INTERRUPTED


def _rows(log: Path) -> list[dict[str, Any]]:
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
