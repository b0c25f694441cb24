"""Steps of the demo: commands that a user could type, run in order; which are done and how long they took is kept.

The first step that is not done yet is run, and all after it: whatever they find done themselves, they do not do again.
A step that needs nothing from the others may run in parallel; its output appears when it is its turn.
Files made with other settings are not resumed: the demo says to remove them, or to name another folder.
"""

import hashlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from foundry.errors import UserError
from foundry.storage.folder import new_file

LOG = "steps.jsonl"
_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command of the foundry."""

    title: str
    """Purpose of the step, for the reader."""
    module: str
    """Module, the argument of `python -m`."""
    arguments: tuple[str, ...]
    """Arguments of the module."""
    output: Path | None = None
    """The file or folder that it writes; None: it only prints."""
    beside: bool = False
    """Starts at once, in parallel to the other steps, since it reads nothing that they write."""

    @property
    def command(self) -> str:
        """Command as a user would type it."""
        return f"python -m {shlex.join((self.module, *self.arguments))}"


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Duration of a step."""

    title: str
    command: str
    seconds: float
    """Seconds of all attempts with these settings, without those that were killed."""


def run_steps(folder: Path, steps: Sequence[Step]) -> None:
    """Runs the first step that is not done and all after it, and keeps in `folder` what was run.

    Raises UserError if a step fails, and before any is run where an output was made with other settings of its step or of
    one before it; KeyboardInterrupt on Ctrl-C.
    """
    log = folder / LOG
    last = {row["title"]: (row["identity"], row["code"]) for row in _rows(log)}
    found = [last.get(step.title, ("", None)) for step in steps]
    planned = list(zip(steps, _identities(steps), found, strict=True))
    _refuse_outputs([step for step, identity, (made_with, _) in planned if made_with != identity])
    num_done = len(list(takewhile(lambda one: _is_done(*one), planned)))
    with ThreadPoolExecutor() as pool:
        beside = {}
        for step, identity, _ in planned[num_done:]:
            if step.beside:
                _add_start(log, step, identity)
                beside[step.title] = pool.submit(_call, step, is_captured=True)
        for number, (step, identity, _) in enumerate(planned):
            print(f"\n== {step.title}\n$ {step.command}", flush=True)
            if number < num_done:
                print("-- done before", flush=True)
            else:
                _run(step, identity, log, beside.get(step.title))


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
    """Duration for people: 8 s, 2 min 05 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _identities(steps: Iterable[Step]) -> Iterator[str]:
    """Hash of each step: of its command, of the settings and prompts that it reads, and of all outputs before it."""
    before = hashlib.sha256()
    for step in steps:
        digest = before if step.output else before.copy()
        digest.update(step.command.encode())
        for word in step.arguments:
            if word.endswith((".yaml", ".txt")) and Path(word).is_file():
                digest.update(Path(word).read_bytes())
        yield digest.hexdigest()[:16]


def _refuse_outputs(steps: Sequence[Step]) -> None:
    """Raises UserError if one of these steps, whose settings are new, has an output."""
    if there := [step for step in steps if step.output and step.output.exists()]:
        raise UserError(
            f"{there[0].output} was made with other settings than the step «{there[0].title}» has now: "
            f"give another --out, or remove {' '.join(str(step.output) for step in there)}"
        )


def _is_done(step: Step, identity: str, made_with: tuple[str, int | None]) -> bool:
    return made_with == (identity, 0) and (step.output is None or step.output.exists())


def _run(step: Step, identity: str, log: Path, beside: "Future[_Ended] | None") -> None:
    """Runs the step, or waits for it if it runs in parallel, and writes a row when it ends."""
    if beside is None:
        _add_start(log, step, identity)
    ended = beside.result() if beside else _call(step)
    if ended.printed:
        print(ended.printed, flush=True)
    _add_row(log, {**_row(step, identity), "code": ended.code, "seconds": ended.seconds})
    if ended.code == _INTERRUPTED:
        raise KeyboardInterrupt
    if ended.code:
        raise UserError(
            f"the step «{step.title}» ended with exit code {ended.code}: fix what its message says, then run this again"
        )
    print(f"-- {ended.seconds:.0f} s" + (", in parallel with the steps above" if beside else ""), flush=True)


@dataclass(frozen=True, kw_only=True)
class _Ended:
    """Outcome of a step."""

    code: int
    seconds: float
    printed: str
    """All that it printed, where that was captured; of a line that was overwritten, what it came to."""


def _call(step: Step, *, is_captured: bool = False) -> _Ended:
    """Runs the command. After Ctrl-C, which it gets as well, it is waited for: a training saves what it has."""
    started = time.perf_counter()
    command = [sys.executable, "-m", step.module, *step.arguments]
    stdout, stderr = (subprocess.PIPE, subprocess.STDOUT) if is_captured else (None, None)
    process = subprocess.Popen(command, stdout=stdout, stderr=stderr)
    try:
        printed, _ = process.communicate()
        code = process.returncode
    except KeyboardInterrupt:
        process.wait()
        printed, code = b"", _INTERRUPTED
    lines = (line.rpartition("\r")[2] for line in (printed or b"").decode(errors="replace").split("\n"))
    return _Ended(code=code, seconds=time.perf_counter() - started, printed="\n".join(lines).rstrip())


def _row(step: Step, identity: str) -> dict[str, Any]:
    return {"title": step.title, "command": step.command, "identity": identity}


def _add_start(log: Path, step: Step, identity: str) -> None:
    """Writes a row when the step starts, since it may be killed."""
    _add_row(log, {**_row(step, identity), "code": None, "seconds": 0.0})


def _add_row(log: Path, row: dict[str, Any]) -> None:
    with new_file(log) as partial:
        partial.write_text("".join(json.dumps(one) + "\n" for one in (*_rows(log), row)), encoding="utf-8")


def _rows(log: Path) -> list[dict[str, Any]]:
    """Rows without a last line that was cut off."""
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
