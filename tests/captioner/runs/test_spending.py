"""Tokens cost what their prices say, those of earlier starts too, and the run stops at the limit."""

import pytest

from captioner.engines.endpoint_settings import EndpointSettings
from captioner.runs.spending import Spending
from foundry.units.commits import Commit
from foundry.units.run import BudgetExceeded

PRICED = EndpointSettings(input_price=2, output_price=10, max_cost=1.0)


def commit(unit: int, *, input_tokens: int, output_tokens: int) -> Commit:
    return Commit(
        run_id="r",
        unit=unit,
        planned=1,
        completed=1,
        rejected={},
        files={},
        num_tokens=output_tokens,
        num_input_tokens=input_tokens,
    )


def test_earlier_starts_count_and_the_limit_ends_the_run() -> None:
    spending = Spending(PRICED, [commit(0, input_tokens=100_000, output_tokens=10_000)])
    spending.add(commit(1, input_tokens=200_000, output_tokens=20_000))
    assert spending.line() == "spent 0.90 on 300,000 input tokens and 30,000 output tokens"
    with pytest.raises(
        BudgetExceeded, match="spent 1.00 on 300,000 input tokens and 40,000 output tokens, endpoint.max_cost is 1"
    ):
        spending.add(commit(2, input_tokens=0, output_tokens=10_000))


def test_a_start_at_the_limit_asks_for_nothing() -> None:
    spending = Spending(PRICED, [commit(0, input_tokens=500_000, output_tokens=0)])
    assert spending.excess().endswith("raise it, and the same command resumes")
    assert not Spending(PRICED, []).excess()


def test_without_prices_nothing_is_said() -> None:
    spending = Spending(EndpointSettings(), [commit(0, input_tokens=500_000, output_tokens=0)])
    assert spending.line() == ""
