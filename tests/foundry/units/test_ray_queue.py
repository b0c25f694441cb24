"""The turns in which replicas get units, without a Ray."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from foundry.units.ray_driver import turns
from foundry.units.ray_replicas import ReplicaHandle


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
