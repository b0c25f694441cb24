"""Price of the tokens of a run, from its commits, and the limit at which the run stops."""

from collections.abc import Sequence

from captioner.engines.endpoint_settings import EndpointSettings
from foundry.errors import UserError
from foundry.units.commits import Commit


class Spending:
    """Counts the tokens of all committed units, of earlier starts too, and checks their price against the limit."""

    def __init__(self, settings: EndpointSettings, commits: Sequence[Commit]) -> None:
        """Raises UserError where the limit is reached already."""
        self._settings = settings
        self._input_tokens = self._output_tokens = 0
        for commit in commits:
            self._count(commit)
        self._check()

    def add(self, commit: Commit) -> None:
        """Counts a unit. Raises UserError where the limit is reached."""
        self._count(commit)
        self._check()

    def line(self) -> str:
        """What was spent, in one line; "" without prices."""
        if not (self._settings.input_price or self._settings.output_price):
            return ""
        return f"spent {self._cost:,.2f} on {self._input_tokens:,} input tokens and {self._output_tokens:,} output tokens"

    @property
    def _cost(self) -> float:
        return self._settings.cost(input_tokens=self._input_tokens, output_tokens=self._output_tokens)

    def _count(self, commit: Commit) -> None:
        self._input_tokens += commit.num_input_tokens
        self._output_tokens += commit.num_tokens

    def _check(self) -> None:
        limit = self._settings.max_cost
        if limit is not None and self._cost >= limit:
            raise UserError(f"{self.line()}, endpoint.max_cost is {limit:g}: raise it, and the same command resumes")
