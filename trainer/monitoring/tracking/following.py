"""The process that sends a run's rows to one tracker, so that no client can stop, slow or end the training.

It reads the run's folder, answers in lines on stdout, and ends when its stdin does: when the training ends or is killed.
What a tracker lacks then is sent at the next start.
"""

import json
import os
import re
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import yaml

from foundry.errors import one_line
from trainer.monitoring.tracking.clients import CLIENTS, TrackedRun
from trainer.monitoring.tracking.rows import RunRows, Tracker, TrackerState

POLL_S = 2.0
RETRY_S = (30.0, 60.0, 120.0, 300.0)
OPEN_S = 15.0
"""Time without an open run after which the training's log says so."""
HANG_S = 120.0
LEAVE_S = 120.0
"""Time to the end of this process after that of the training; a training that waits for it ends it sooner."""
_REASON_CHARS = 300
_SECRET = re.compile(r"KEY|TOKEN|PASSWORD|SECRET|CREDENTIAL")
_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
_SECRET_CHARS = 6
_NICER = 5
"""The training goes first where cores are scarce."""


class Follower:
    """Sends the rows of a run to a tracker, each once, until it is told to end."""

    def __init__(self, run: Path, name: str, *, project: str | None, answers: TextIO) -> None:
        """`answers`: where lines for the training's log are written."""
        self._run = run
        self._name = name
        self._project = project
        self._answers = answers
        self._state = TrackerState(run, name)
        self._busy_since: float | None = None
        self._is_open = False

    def follow(self, ends: threading.Event) -> None:
        """Sends rows until `ends`, and then those that are left. A tracker that fails is opened again after a while."""
        threading.Thread(target=self._watch, daemon=True).start()
        tries = 0
        while not self._sent_all(ends, is_retry=tries > 0):
            wait_s = RETRY_S[min(tries, len(RETRY_S) - 1)]
            tries += 1
            if ends.wait(wait_s):
                self._say(f"warning: {self._name} lacks rows of {self._run}: the same training command sends them")
                return

    def _sent_all(self, ends: threading.Event, *, is_retry: bool) -> bool:
        tracker = None
        try:
            self._busy_since = time.monotonic()
            tracker = CLIENTS[self._name](read_facts(self._run, project=self._project), self._state)
            self._is_open = True
            self._send(tracker, ends)
            self._busy_since = time.monotonic()
            tracker.finish()
        except Exception as error:  # noqa: BLE001 - whatever a client raises, the training does not end for it
            if not is_retry:
                reason = without_secrets(f"{type(error).__name__}: {one_line(error, limit=_REASON_CHARS)}")
                self._say(f"warning: {self._name} fails ({reason}): training continues, and the rows are sent once it works")
            if tracker is not None:
                with suppress(Exception):
                    tracker.finish()
            return False
        finally:
            self._busy_since = None
        return True

    def _send(self, tracker: Tracker, ends: threading.Event) -> None:
        sent = self._state.sent()
        keys = sent[: tracker.held(len(sent))]
        self._state.shorten(keys)
        self._say(f"{self._name}: {without_secrets(tracker.where)}; {len(keys)} rows are there")
        rows, index, there, last = RunRows(self._run), len(keys), set(keys), False
        while not last:
            self._busy_since = None
            last = ends.wait(POLL_S)
            self._busy_since = time.monotonic()
            for row in rows.new():
                if row.key not in there:
                    self._state.add(row.key)
                    tracker.log(row, index)
                    self._busy_since = time.monotonic()
                    there.add(row.key)
                    index += 1

    def _watch(self) -> None:
        """Says, once each, that the run is not open after a while, and that a call of the client does not return."""
        says_open = True
        while (busy_s := self._busy_s()) < HANG_S:
            if says_open and not self._is_open and busy_s >= OPEN_S:
                says_open = False
                self._say(f"warning: {self._name} has not opened the run for {OPEN_S:.0f} s: training continues")
            time.sleep(min(1.0, OPEN_S / 4))
        self._say(f"warning: {self._name} has not answered for {HANG_S:.0f} s: training continues without it")

    def _busy_s(self) -> float:
        """Seconds since the client was called; 0 where none of its calls is open."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def _say(self, line: str) -> None:
        with suppress(OSError):  # the training was killed
            self._answers.write(line + "\n")
            self._answers.flush()


def read_facts(run: Path, *, project: str | None) -> TrackedRun:
    """The settings and the last start of a run, from its folder."""
    settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    start = json.loads((run / "starts.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    start.pop("argv", None)
    name = "/".join(run.absolute().parts[-2:])
    return TrackedRun(path=run, name=name, project=project, settings=settings, start=start)


def without_secrets(text: str) -> str:
    """The text without the values of keys and tokens of the environment, and without passwords in URLs."""
    for name, value in os.environ.items():
        if _SECRET.search(name.upper()) and len(value) >= _SECRET_CHARS:
            text = text.replace(value, "***")
    return _IN_URL.sub("***@", text)


def main(run: str, name: str, project: str) -> None:
    """Follows a run until stdin ends. What clients print is dropped: it may hold keys, and the log is the training's."""
    os.nice(_NICER)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    for kind in (signal.SIGINT, signal.SIGTERM):  # meant for the training, which then ends this process by its stdin
        signal.signal(kind, signal.SIG_IGN)
    ends = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.buffer.read()
        ends.set()
        time.sleep(LEAVE_S)
        os._exit(1)  # a client hangs, and the training that would end this process was killed

    threading.Thread(target=wait_for_end, daemon=True).start()
    with TrackerState(Path(run), name).held(wait=True):
        Follower(Path(run), name, project=project or None, answers=answers).follow(ends)
