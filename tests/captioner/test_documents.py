"""docs/captioning.md names every status, flag and reason that a run can have, and none that it cannot."""

import re
from pathlib import Path

from captioner.cleaning import RULES, STATUSES
from foundry.units.rejection import REJECTION_REASONS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "captioning.md").read_text()
OF_OTHER_COMMANDS = {"changed", "no_caption", "no_class_label", "out_of_range"}
"""Reasons of scores and features."""


def table(header: str) -> set[str]:
    """The first column of the table that begins with this header."""
    (rows,) = re.findall(rf"^\| {re.escape(header)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return set(re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE))


def test_statuses_flags_and_reasons_are_listed() -> None:
    assert table("`status`") == set(STATUSES)
    assert table("in `flags`") == {rule.name for rule in RULES if rule.flagged and rule.status is None}
    assert table("reason") == set(REJECTION_REASONS) - OF_OTHER_COMMANDS
