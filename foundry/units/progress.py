"""Progress bar for units, and the rejection budget that stops a run."""

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

from foundry.units.commits import Commit

_SOON_S = 2.0


class BudgetExceeded(Exception):
    """More images were rejected than is allowed."""


def counting(what: str) -> Any:
    """A tqdm that counts images of unknown number, and says nothing of what takes less than two seconds."""
    return tqdm(desc=what, unit=" images", delay=_SOON_S, mininterval=_interval_s())


class Progress:
    """Counts commits: images/s, tokens/s, rejected, ETA. `budget` is how many rejections are still allowed."""

    def __init__(self, *, planned: int, budget: int) -> None:
        self.planned = planned
        self.budget = budget
        self.images = self.rejected = self.tokens = 0
        self.started_at = self.ended_at = time.perf_counter()
        self.bar: Any = None

    def __enter__(self) -> "Progress":
        self.bar = tqdm(total=self.planned, unit=" images", mininterval=_interval_s(), smoothing=0.1, dynamic_ncols=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ended_at = time.perf_counter()
        self.bar.close()

    def start(self) -> None:
        """The models are loaded: from here the speed counts."""
        self.started_at = time.perf_counter()
        self.bar.reset()

    def update(self, commit: Commit | None) -> None:
        """Counts a unit; None is one that somebody else committed. Raises BudgetExceeded."""
        if commit is None:
            return
        rejected = commit.num_rejected
        self.images += commit.planned
        self.rejected += rejected
        self.tokens += commit.num_tokens
        seconds = max(time.perf_counter() - self.started_at, 1e-9)
        written = f"{self.tokens / seconds:.0f} tokens/s, " if self.tokens else ""
        self.bar.set_postfix_str(f"{written}{self.rejected} rejected", refresh=False)
        self.bar.update(commit.planned)
        self.check_budget(0)

    def check_budget(self, num_uncommitted: int) -> None:
        """Raises BudgetExceeded; `num_uncommitted` images are rejected already in units that are not done."""
        rejected = self.rejected + num_uncommitted
        if rejected > self.budget:
            raise BudgetExceeded(
                f"{rejected} of the {self.images + num_uncommitted} images done just now are rejected, "
                f"{self.budget} more were allowed"
            )

    def summary(self) -> str:
        """Images, time and speed since the models were loaded."""
        seconds = max(self.ended_at - self.started_at, 1e-9)
        speed = f"{self.images / seconds:.1f} images/s"
        speed += f", {self.tokens / seconds:.0f} tokens/s" if self.tokens else ""
        return f"{self.images} images in {seconds:.1f} s: {speed}"


def _interval_s() -> float:
    """How often a line is written: a log file gets one now and then."""
    return 1.0 if sys.stderr.isatty() else 10.0
