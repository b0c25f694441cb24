"""Bisection of a failing unit, to find the images that crash it; holds the retry state of an uncommitted unit.

A unit that keeps failing in `prepare` or `process` is split. Each part is probed: run without a commit. A part that fails is
split again, down to the images that fail alone. Those are excluded with a reason, and the whole unit is run again without
them, so that its result does not depend on how they were found. Does not import Ray: ray_driver.py makes the calls.
"""

from collections import Counter, deque
from dataclasses import dataclass, field

from foundry.errors import UserError
from foundry.units.commits import Unit
from foundry.units.rejection import Failure
from foundry.units.workers import JobFailed, describe

TRIES = 2


@dataclass
class OpenUnit:
    """Unit that is not committed yet. While it is searched, `suspects` holds the parts to probe, the next one first."""

    unit: Unit
    one_by_one: bool = False
    searched: bool = False
    excluded: dict[int, Failure] = field(default_factory=dict)
    suspects: deque[list[int]] = field(default_factory=deque)
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def is_probe(self) -> bool:
        """Whether the next run only looks for the images that fail, and ends without a commit."""
        return bool(self.suspects)

    @property
    def positions(self) -> list[int]:
        """The images of the next run."""
        if self.suspects:
            return self.suspects[0]
        return [position for position in range(self.unit.num_images) if position not in self.excluded]

    def passed(self) -> None:
        """The probe passed: none of its images fails alone."""
        self.suspects.popleft()
        self.failures.clear()

    def failed(self, stage: str, message: str, *, died: bool) -> None:
        """A run failed in `prepare`, `process` or `finish`: decides what the next one is. `died`: its worker did, or its data.

        A worker that died is tried again, since a machine may be at fault; what a model raises, it raises again.
        Raises UserError if no image can be to blame.
        """
        self.failures[stage] += 1
        if self.failures[stage] < TRIES and (died or stage != "process"):
            return
        if stage == "finish" or (stage == "prepare" and not died):
            raise UserError(f"unit {self.unit.number} failed in {stage}: {message}")
        self._blame(Failure(reason="worker_died" if died else "model_error", message=message))

    def _blame(self, failure: Failure) -> None:
        positions = self.positions
        self.failures.clear()
        if self.suspects:
            self.suspects.popleft()
            if len(positions) == 1:
                self.excluded[positions[0]] = failure
            else:
                self._split(positions)
        elif not self.searched:
            self.searched = True
            self._split(positions)
        elif not self.one_by_one:
            self.one_by_one = True
        else:
            raise UserError(
                f"unit {self.unit.number} fails although each of its images passes alone ({failure.message}): "
                "if memory ran out, start again in another folder, with smaller units"
            )

    def _split(self, positions: list[int]) -> None:
        middle = (len(positions) + 1) // 2
        halves = [half for half in (positions[:middle], positions[middle:]) if half]
        self.suspects.extendleft(reversed(halves))


def is_raised(error: Exception) -> bool:
    """Whether the error of a call on Ray was raised by the job's own code; else its worker died, or its data were lost."""
    return isinstance(getattr(error, "cause", None), JobFailed)


def cause_of(error: Exception) -> str:
    """The error of a call on Ray in one line, without Ray's own traceback."""
    cause = getattr(error, "cause", None) or error
    return str(cause) if isinstance(cause, JobFailed) else describe(cause)


def cause_with_limit(error: Exception, limit: str, limit_s: float) -> str:
    """The error of a call on Ray in one line; that of a death names the time limit which may have been the cause of it."""
    ending = "" if is_raised(error) else f" (ray.{limit} is {limit_s:g})"
    return cause_of(error) + ending
