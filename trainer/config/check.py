"""Check of a setting: its name, what it must be, and whether it is."""

from typing import Protocol

Check = tuple[str, str, bool]


class Checked(Protocol):
    """A part of the settings that says what its values must be; TrainConfig raises one error for all parts."""

    def checks(self) -> list[Check]:
        """A check for each value that has bounds."""
