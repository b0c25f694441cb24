"""UnitJob, the protocol of a kind of work (prepare, process, finish), and the code that runs it in a worker, without Ray.

Each call has a time limit that the worker enforces on itself, by a thread that needs neither Ray nor Python's lock. So the
limit counts from the start of the call, not from when it began to queue, and holds for code that hangs outside of Python.
"""

import faulthandler
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from foundry.errors import Unavailable, UserError
from foundry.units.commits import Commit, Unit
from foundry.units.rejection import Failure


@dataclass(frozen=True, kw_only=True)
class WindowedUnit(Unit):
    """A unit whose images share parts of their containers with others, which a node fetches once for all of them."""

    window: int | None = None
    """The units that share: they are prepared on one node as long as it has room; none: on any."""


class UnitJob(Protocol):
    """Work on a unit. Instances are pickled to the workers, so they hold settings only."""

    def prepare(self, unit: Unit, positions: Sequence[int]) -> tuple[Any, Any]:
        """Prepares, on a CPU worker, (payload for the model, facts for `finish`) of the images at these positions of the
        unit."""

    def warm_up(self) -> None:
        """Loads, on a CPU worker, what `prepare` and `finish` need once per process, while the models load."""

    def load_engine(self) -> Any:
        """Loads the model, once per replica."""

    def check(self, engine: Any) -> None:
        """Tests the model on a replica with a small made-up input, after loading and after a failure. Raises if it does not
        work."""

    def process(self, engine: Any, payload: Any, *, one_by_one: bool) -> Any:
        """Computes, on a replica, the model's output for a payload; `one_by_one` asks for the smallest batches."""

    def finish(self, unit: Unit, *, facts: Any, output: Any, excluded: dict[int, Failure]) -> Commit | None:
        """Writes and commits, on a CPU worker; None if another attempt had already committed."""


class JobFailed(Exception):
    """The job's own code raised; the message is one line. Unlike those of libraries, this can always be pickled."""


class ModelBroken(JobFailed):
    """The model does not work any more, or never did: its replica is of no use."""


class RunFailed(JobFailed):
    """A service that all units need is unavailable: the run ends. `setting` is that of the error."""

    def __init__(self, message: str, *, setting: str = "") -> None:
        super().__init__(message)
        self.setting = setting


class Replica:
    """Copy of the model in its own process; Ray makes an actor of it. Calls run in the order of their making."""

    def __init__(self, job: UnitJob) -> None:
        self.job = job
        self.engine: Any = None
        self.broken = False

    def load(self, limit_s: float) -> None:
        """Loads the model and tries it out. Raises JobFailed."""
        with _limited(limit_s):
            self.engine = self.job.load_engine()
            self._check()

    def process(self, payload: Any, *, one_by_one: bool, keep: bool, limit_s: float) -> Any:
        """The job's `process`; its result is dropped unless `keep`. Raises JobFailed: RunFailed where a service is unavailable.

        After a failure the model is checked, since an error can leave a device unusable: if it is, this call and all
        that follow raise ModelBroken.
        """
        if self.broken:
            raise ModelBroken("an earlier call broke the model")
        with _limited(limit_s):
            try:
                output = self.job.process(self.engine, payload, one_by_one=one_by_one)
            except Unavailable as error:
                raise RunFailed(describe(error), setting=error.setting) from error
            except Exception as error:
                self._check(before=error)
                raise
        return output if keep else None

    def _check(self, before: Exception | None = None) -> None:
        try:
            self.job.check(self.engine)
        except Exception as error:
            self.broken = True
            raise ModelBroken(describe(before) if before else f"its check failed: {describe(error)}") from error


def warm_up(job: UnitJob, *, limit_s: float) -> None:
    """The job's `warm_up`. Raises JobFailed."""
    with _limited(limit_s):
        job.warm_up()


def prepare_unit(job: UnitJob, unit: Unit, positions: Sequence[int], *, limit_s: float) -> tuple[Any, Any]:
    """The job's `prepare`: (payload, facts). Raises JobFailed."""
    with _limited(limit_s):
        return job.prepare(unit, positions)


def finish_unit(
    job: UnitJob, unit: Unit, *, facts: Any, output: Any, excluded: dict[int, Failure], limit_s: float
) -> Commit | None:
    """The job's `finish`. Raises JobFailed."""
    with _limited(limit_s):
        return job.finish(unit, facts=facts, output=output, excluded=excluded)


def describe(error: BaseException) -> str:
    """An exception in one line of at most 500 characters, with its type unless it is a UserError, which is a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return (lines[0] if isinstance(error, UserError) else f"{type(error).__name__}: {lines[0]}")[:500]


@contextmanager
def _limited(limit_s: float) -> Iterator[None]:
    """Ends this process, with a traceback in its log, where the block takes longer than `limit_s`.

    Raises JobFailed; but MemoryError as it is, since that is no word on the work, as little as a process that was killed.
    """
    faulthandler.dump_traceback_later(limit_s, exit=True)
    try:
        yield
    except (JobFailed, MemoryError):
        raise
    except Exception as error:
        raise JobFailed(describe(error)) from error
    finally:
        faulthandler.cancel_dump_traceback_later()
