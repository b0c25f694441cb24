"""Price of the tokens of a run, from its commits, and the limit at which the run stops."""

from collections.abc import Sequence

from captioner.engines.endpoint_settings import EndpointSettings
from foundry.units.commits import Commit
from foundry.units.run import BudgetExceeded


class Spending:
    """Counts the tokens of all committed units, of earlier starts too, and checks their price against the limit."""

    def __init__(self, settings: EndpointSettings, commits: Sequence[Commit]) -> None:
        self._settings = settings
        self._input_tokens = self._output_tokens = 0
        for commit in commits:
            self._count(commit)

    def add(self, commit: Commit) -> None:
        """Counts a unit. Raises BudgetExceeded if the limit is reached."""
        self._count(commit)
        if said := self.excess():
            raise BudgetExceeded(said)

    def excess(self) -> str:
        """Message if the limit is reached, otherwise ""."""
        limit = self._settings.max_cost
        if limit is None or self._cost < limit:
            return ""
        return f"{self.line()}, endpoint.max_cost is {limit:g}: raise it, and the same command resumes"

    def line(self) -> str:
        """Money spent, in one line; "" without prices."""
        if not (self._settings.input_price or self._settings.output_price):
            return ""
        return f"spent {self._cost:,.2f} on {self._input_tokens:,} input tokens and {self._output_tokens:,} output tokens"

    @property
    def _cost(self) -> float:
        return self._settings.cost(input_tokens=self._input_tokens, output_tokens=self._output_tokens)

    def _count(self, commit: Commit) -> None:
        self._input_tokens += commit.num_input_tokens
        self._output_tokens += commit.num_tokens
