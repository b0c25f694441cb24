"""Benchmarks of few steps and samplers: the search for noise levels is exact, and figures say which method is better."""

from itertools import combinations

import pytest
import torch

from benchmarks.few_steps import METHODS, STEPS, _figures, _table
from benchmarks.samplers import SAMPLERS, SPACINGS, _spaced, searched_levels
from benchmarks.samplers import _figures as sampler_figures
from benchmarks.samplers import _table as sampler_table


def _scores(*, worse: str) -> dict[str, dict[str, float]]:
    """Of 20 steps, and of both methods, one of which loses more."""
    found = {"20": {"object": 0.99, "all": 0.96, "place": 0.9}}
    for method in METHODS:
        for steps in STEPS:
            loss = 0.01 * (5 - steps) * (2 if method == worse else 1)
            found[f"{method} {steps}"] = {"object": 0.99, "all": 0.96 - loss, "place": 0.9}
    return found


@pytest.mark.parametrize("better", METHODS)
def test_the_better_method_is_named_and_both_are_told(better: str) -> None:
    (worse,) = set(METHODS) - {better}
    figures = _figures(_scores(worse=worse))
    assert figures["rectification_is_better"] == float(better == "rectification")
    assert figures["loss_4"] == pytest.approx(1) and figures["other_loss_4"] == pytest.approx(2)
    assert (figures["all_20"], figures["object_20"]) == (0.96, 0.99) and figures["all_1"] == pytest.approx(0.92)
    table = _table(_scores(worse=worse)).splitlines()
    assert len(table) == 2 + 1 + len(METHODS) * len(STEPS) and table[2] == "| 20 | 99.0 | 96.0 | 90.0 |  |"


def test_searched_levels_are_the_cheapest_of_all_that_there_are() -> None:
    levels = [1 - step / 9 for step in range(10)]
    costs: list[list[float]] = torch.rand(10, 10, generator=torch.Generator().manual_seed(0)).tolist()
    for num in (1, 2, 4, 9):
        found = searched_levels(levels, costs, num)

        def cost(path: tuple[int, ...]) -> float:
            return sum(costs[start][end] for start, end in zip(path, (*path[1:], 9), strict=True))

        best = min(((0, *middle) for middle in combinations(range(1, 9), num - 1)), key=cost)
        assert found == pytest.approx([levels[index] for index in best])


def test_spacings_fall_from_noise_and_end_above_the_image() -> None:
    for spacing in SPACINGS[:-1]:
        for num in (1, 8, 20):
            levels = _spaced(spacing, num)
            assert len(levels) == num and list(levels) == sorted(set(levels), reverse=True)
            assert 0.99 < levels[0] <= 1 and levels[-1] > 0
    scores = {"all": [0.9, 0.7], "object": [1.0, 1.0]}
    found = {(sampler, spacing, 8): scores for sampler in SAMPLERS for spacing in SPACINGS}
    figures = sampler_figures(found)
    assert figures["all_ddim_shift_3_8"] == pytest.approx(0.8) and figures["spread_ddim_even_8"] == pytest.approx(
        0.1414, abs=1e-3
    )
    assert sampler_table(found, [8]).count("80.0 ± 14.1 | 100.0 |") == len(SAMPLERS) * len(SPACINGS)
