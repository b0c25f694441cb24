"""Verdicts of blind comparisons, kept in verdicts.jsonl, and their tally with Wilson's interval.

Source of the interval: Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
"""

import math
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from foundry.storage.folder import Folder, store_errors
from foundry.storage.json_lines import read_rows
from studio.drawing.history import append_row

RECORD = "verdicts.jsonl"
Better = Literal["first", "second", "tie"]
_Z = 1.959964
"""Quantile of the normal distribution for 95 %."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One judgement of two images of the same prompt and seed. `first` and `second` are checkpoints, in the order of names."""

    judged_at: str
    judged_by: str
    first: str
    second: str
    first_was_left: bool
    prompt: str
    seed: int
    num_inference_steps: int | None
    guidance_scale: float | None
    better: Better


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Verdicts on two checkpoints. The share and its interval are of the verdicts that are no ties; None where all are."""

    first: str
    second: str
    first_better: int
    second_better: int
    ties: int
    share: float | None
    low: float | None
    high: float | None


class VerdictLog:
    """The verdicts in a folder."""

    def __init__(self, out: Path) -> None:
        self.path = out / RECORD
        self._lock = threading.Lock()

    def add(self, verdict: Verdict) -> None:
        """Appends a verdict. Raises UserError where the folder cannot be written."""
        with store_errors(Folder(str(self.path.parent))), self._lock:
            append_row(self.path, asdict(verdict))

    def all(self) -> list[Verdict]:
        """All verdicts, the earliest first."""
        return [Verdict(**row) for row in read_rows(self.path)]

    def tallies(self) -> list[Tally]:
        """A tally of each pair of checkpoints."""
        verdicts = self.all()
        pairs = dict.fromkeys((one.first, one.second) for one in verdicts)
        return [tally([one for one in verdicts if (one.first, one.second) == pair]) for pair in pairs]


def tally(verdicts: Sequence[Verdict]) -> Tally:
    """The tally of verdicts on one pair of checkpoints."""
    counts = Counter(one.better for one in verdicts)
    wins, losses = counts["first"], counts["second"]
    low, high = wilson_interval(wins, wins + losses)
    return Tally(
        first=verdicts[0].first,
        second=verdicts[0].second,
        first_better=wins,
        second_better=losses,
        ties=counts["tie"],
        share=wins / (wins + losses) if wins + losses else None,
        low=low,
        high=high,
    )


def wilson_interval(successes: int, trials: int) -> tuple[float, float] | tuple[None, None]:
    """The 95 % interval of a share; (None, None) without a trial."""
    if not trials:
        return None, None
    share, spread = successes / trials, _Z**2 / trials
    centre = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def tally_rows(tallies: Sequence[Tally]) -> list[dict[str, Any]]:
    """Tallies as rows of a table."""
    return [
        {
            "A": one.first,
            "B": one.second,
            "A better": one.first_better,
            "B better": one.second_better,
            "ties": one.ties,
            "A's share of decided": None if one.share is None else f"{one.share:.0%}",
            "95 % interval": None if one.low is None or one.high is None else f"{one.low:.0%} to {one.high:.0%}",
        }
        for one in tallies
    ]
