"""The settings of the benchmarks wise and wise_verified. Imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WiseConfig:
    """Where the prompts come from, and who judges."""

    folder: str | None = None
    """Your copy of WISE; default: a few prompts of our own."""
