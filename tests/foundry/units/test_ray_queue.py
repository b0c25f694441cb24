"""The turns in which replicas get units, and the time that a probe gets, without a Ray."""

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from foundry.units.cluster import Node
from foundry.units.commits import Unit
from foundry.units.ray_driver import LEAST_LIMIT_S, SLOWER, node_of_window, probe_limit_s, turns
from foundry.units.ray_replicas import ReplicaHandle
from foundry.units.workers import WindowedUnit


def handles(*, loaded: int, loading: int = 0) -> list[ReplicaHandle]:
    waiting = [None] * loaded + ["load"] * loading
    return [ReplicaHandle(number, "node", ref) for number, ref in enumerate(waiting)]


def test_work_goes_round_the_replicas() -> None:
    first, second = handles(loaded=2)
    assert turns([first, second], Counter(), num_pending=9, most=2) == [first, second, first, second]


def test_the_least_busy_comes_first() -> None:
    first, second = handles(loaded=2)
    assert turns([first, second], Counter({first: 2}), num_pending=9, most=3) == [second, second, first, second]


def test_a_replica_that_loads_gets_nothing_and_keeps_its_share() -> None:
    first, loading = handles(loaded=1, loading=1)
    assert turns([first, loading], Counter(), num_pending=4, most=3) == [first, first]


@given(data=st.data(), loaded=st.integers(1, 5), num_pending=st.integers(0, 30), most=st.integers(1, 6))
def test_none_gets_more_than_is_allowed_or_there(data: st.DataObject, loaded: int, num_pending: int, most: int) -> None:
    replicas = handles(loaded=loaded, loading=data.draw(st.integers(0, 3)))
    busy = Counter({one: data.draw(st.integers(0, most)) for one in replicas[:loaded]})
    taken = turns(replicas, busy, num_pending=num_pending, most=most)
    assert len(taken) <= num_pending
    assert all(busy[one] + taken.count(one) <= most for one in taken)
    assert taken or num_pending == 0 or min(busy[one] for one in replicas[:loaded]) > 0, "an idle one has to get work"


def test_units_of_a_window_are_prepared_on_one_node() -> None:
    """Its parts of containers are then fetched by one node; units without a window, and those of one node, go anywhere."""
    first, second, head = (Node(node_id=name, name=name, cpus=cpus, gpus=0) for name, cpus in (("a", 4), ("b", 4), ("c", 0)))
    unit: dict[str, Any] = {"part": "", "row_group": 0, "num_images": 1}
    windows = [WindowedUnit(number=number, window=number // 3, **unit) for number in range(9)]
    found = [node_of_window(one, [second, head, first]) for one in windows]
    assert found == [first] * 3 + [second] * 3 + [first] * 3
    assert node_of_window(windows[0], [first, head]) is None
    assert node_of_window(Unit(number=0, **unit), [first, second]) is None
    assert node_of_window(WindowedUnit(number=0, **unit), [first, second]) is None


@given(num_images=st.integers(1, 512), unit_timeout_s=st.floats(1, 1e5), slowest_s=st.floats(0, 1e4), more=st.integers(0, 512))
def test_a_probe_gets_its_share_of_the_time_or_a_multiple_of_the_slowest_call(
    num_images: int, unit_timeout_s: float, slowest_s: float, more: int
) -> None:
    unit = Unit(number=0, part="", row_group=0, num_images=num_images + more)
    limit_s = probe_limit_s(num_images, unit, unit_timeout_s=unit_timeout_s, slowest_s=slowest_s)
    assert min(unit_timeout_s, LEAST_LIMIT_S) <= limit_s <= unit_timeout_s
    assert limit_s >= min(unit_timeout_s, SLOWER * slowest_s)
    assert limit_s >= unit_timeout_s * num_images / unit.num_images * (1 - 1e-9)


def test_an_image_alone_gets_all_of_the_time_as_long_as_nothing_is_known() -> None:
    unit = Unit(number=0, part="", row_group=0, num_images=512)
    assert probe_limit_s(1, unit, unit_timeout_s=3600, slowest_s=0) == 3600
    assert probe_limit_s(1, unit, unit_timeout_s=3600, slowest_s=2) == LEAST_LIMIT_S
    assert probe_limit_s(1, unit, unit_timeout_s=3600, slowest_s=100) == 400
    assert probe_limit_s(256, unit, unit_timeout_s=3600, slowest_s=0) == 1800, "what hangs is still found in hours"
