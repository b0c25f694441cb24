"""The search for the images that a unit fails on: it ends, finds all of the guilty and none of the others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry.errors import UserError
from foundry.units.bisection import OpenUnit
from foundry.units.commits import Unit


def open_unit(num_images: int) -> OpenUnit:
    return OpenUnit(Unit(number=7, part="", row_group=0, num_images=num_images))


def work_off(state: OpenUnit, guilty: set[int], *, died: bool) -> int:
    """Runs a unit in which the model fails on the guilty images, to its commit; returns how many runs that took."""
    for runs in range(1, 1000):
        if guilty & set(state.positions):
            state.failed("process", "it is ill", died=died)
        elif state.is_probe:
            state.passed()
        else:
            return runs
    raise AssertionError("the search does not end")


@given(data=st.data(), num_images=st.integers(1, 40), died=st.booleans())
def test_exactly_the_guilty_are_excluded(data: st.DataObject, num_images: int, died: bool) -> None:
    guilty = data.draw(st.sets(st.integers(0, num_images - 1)))
    state = open_unit(num_images)
    work_off(state, guilty, died=died)
    assert set(state.excluded) == guilty
    assert state.positions == [position for position in range(num_images) if position not in guilty]
    assert {failure.reason for failure in state.excluded.values()} <= {"worker_died" if died else "model_error"}


def test_one_culprit_of_512_takes_20_runs() -> None:
    assert work_off(open_unit(512), {300}, died=False) <= 1 + 2 * 9 + 1


def test_a_death_in_each_stage_is_no_pattern() -> None:
    """Failures are counted by stage: three machines lost in a row are no reason to look for a culprit, or to give up."""
    state = open_unit(4)
    for stage in ("prepare", "process", "finish"):
        state.failed(stage, "the node is gone", died=True)
    assert state.positions == [0, 1, 2, 3] and not state.is_probe
    state.failed("process", "the node is gone", died=True)
    assert state.is_probe


@pytest.mark.parametrize(("stage", "died"), [("finish", True), ("finish", False), ("prepare", False)])
def test_what_no_image_can_be_blamed_for_ends_the_run(stage: str, died: bool) -> None:
    state = open_unit(4)
    state.failed(stage, "no space left on device", died=died)
    with pytest.raises(UserError, match=f"unit 7 failed in {stage}: no space left on device"):
        state.failed(stage, "no space left on device", died=died)


def test_images_that_fail_together_alone_are_tried_one_by_one_and_then_given_up() -> None:
    state = open_unit(2)
    state.failed("process", "out of memory", died=False)
    while state.is_probe:
        state.passed()
    state.failed("process", "out of memory", died=False)
    assert state.one_by_one and not state.excluded
    with pytest.raises(UserError, match="fails although each of its images passes alone"):
        state.failed("process", "out of memory", died=False)
