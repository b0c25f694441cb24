"""Trackers of a training, as the first worker starts and ends them: a process each, see following.py."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from foundry.errors import UserError
from trainer.config.running import WatchConfig
from trainer.monitoring.run_folder import RunFolder
from trainer.monitoring.tracking.clients import missing_packages

END_S = 60.0
"""Time that a tracker has at the end of a training to store what it was sent."""

GRACE_S = 2.0
"""Time after which a training that still waits for its trackers says so."""

_FOLLOW = "import sys; from trainer.monitoring.tracking.following import main; main(*sys.argv[1:])"


def check_trackers(watch: WatchConfig) -> None:
    """Raises UserError, before anything is trained, for a tracker whose package is missing."""
    missing = [package for name in watch.trackers if (package := missing_packages(name))]
    if missing:
        raise UserError(f"this needs {', '.join(missing)}: pip install {' '.join(missing)}", setting="watch.tracker")


@contextmanager
def tracked(run: RunFolder, watch: WatchConfig, *, is_first: bool) -> Iterator[None]:
    """Sends what the first worker writes to the run's folder to trackers, while it is open."""
    with ExitStack() as stack:
        if is_first:
            check_trackers(watch)
            processes = [_Process(run, name, project=watch.tracker_project) for name in watch.trackers]
            stack.callback(_end, run, processes)
        yield


class _Process:
    """One tracker's process. Its lines go to the training's log."""

    def __init__(self, run: RunFolder, name: str, *, project: str | None) -> None:
        self._run = run
        self.name = name
        self._ends = False
        self._process = subprocess.Popen(
            [sys.executable, "-c", _FOLLOW, str(run.path.absolute()), name, project or ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is the training's
        )
        self._reader = threading.Thread(target=self._read, name=f"tracker {name}", daemon=True)
        self._reader.start()

    def end(self) -> None:
        """Has it send what is left, without waiting for it."""
        self._ends = True
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    def has_ended(self, until: float) -> bool:
        """Whether it ends until a time of time.monotonic()."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=max(0.0, until - time.monotonic()))
        return self._process.poll() is not None

    def wait(self, until: float) -> None:
        """Waits for it until a time of time.monotonic(), then ends it, and says so."""
        if not self.has_ended(until):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._run.say(
                f"warning: {self.name} has not taken all rows within {END_S:.0f} s: the same training command sends the rest"
            )
        self._reader.join(timeout=1.0)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._run.say(line.decode("utf-8", "replace").rstrip())
        code = self._process.wait()
        if code and not self._ends:
            self._run.say(
                f"warning: the process of the tracker {self.name} ended (exit code {code}): training continues, and the next "
                "start sends the rest"
            )


def _end(run: RunFolder, processes: Sequence[_Process]) -> None:
    for process in processes:
        process.end()
    ended = time.monotonic()
    late = [process.name for process in processes if not process.has_ended(ended + min(GRACE_S, END_S))]
    if late:
        run.say(f"training is done; waiting up to {END_S:.0f} s for {', '.join(late)} to store the last rows")
    for process in processes:
        process.wait(ended + END_S)


def _environment() -> dict[str, str]:
    """The training's environment; the folder of this code first on the path, as it is here."""
    root = str(Path(__file__).parents[3])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
