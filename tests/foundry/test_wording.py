"""Singular and plural in the output of commands."""

import pytest

from foundry.wording import counted


@pytest.mark.parametrize(("number", "text"), [(0, "0 units"), (1, "1 unit"), (2, "2 units")])
def test_one_is_no_plural(number: int, text: str) -> None:
    assert counted(number, "unit") == text
