"""Where replicas go, and which wishes no cluster can meet: those are one line, since Ray would wait forever."""

import socket
import threading
from collections import Counter

import pytest

from foundry.errors import RayLost, UserError
from foundry.units import cluster
from foundry.units.cluster import (
    Node,
    RaySettings,
    alive_nodes,
    describe_nodes,
    memory_line,
    no_answer,
    wait_for_head,
)


def node(name: str, *, cpus: float = 0, gpus: float = 0, memory_gb: float = 0) -> Node:
    return Node(node_id=name, name=name, cpus=cpus, gpus=gpus, memory_bytes=memory_gb * 1e9)


HEAD, SMALL, LARGE = node("head"), node("small", cpus=4), node("large", cpus=11)
GPUS = [node("one", cpus=8, gpus=1), node("three", cpus=8, gpus=3)]


@pytest.mark.parametrize(
    ("settings", "nodes", "expected"),
    [
        (RaySettings(cpus_per_replica=4), [HEAD, SMALL, LARGE], {"small": 1, "large": 2}),
        (RaySettings(cpus_per_replica=4, num_replicas=2), [SMALL, LARGE], {"small": 1, "large": 1}),
        (RaySettings(cpus_per_replica=4, num_replicas=5), [SMALL, LARGE], {"small": 2, "large": 3}),
        (RaySettings(), GPUS, {"one": 1, "three": 3}),
        (RaySettings(gpus_per_replica=2), GPUS, {"three": 1}),
        (RaySettings(gpus_per_replica=0.5, num_replicas=3), GPUS, {"one": 2, "three": 1}),
    ],
)
def test_replicas_are_placed_node_by_node(settings: RaySettings, nodes: list[Node], expected: dict[str, int]) -> None:
    settings.check(nodes, on_gpus=nodes is GPUS)
    assert Counter(settings.slots(nodes, on_gpus=nodes is GPUS)) == expected


@pytest.mark.parametrize(
    ("settings", "memory_gb", "expected", "threads"),
    [
        (RaySettings(), (100, 40), {"small": 2, "large": 1}, 2),
        (RaySettings(), (100, 10), {"small": 2}, 2),
        (RaySettings(), (20, 10), {"small": 1}, 4),  # it may swap, but a run that a rough figure forbids is worse
        (RaySettings(), (1000, 0), {"small": 4, "large": 11}, 1),
        (RaySettings(cpus_per_replica=4), (100, 1000), {"small": 1, "large": 2}, 4),
        (RaySettings(num_replicas=6), (20, 10), {"small": 3, "large": 3}, 1),
        (RaySettings(num_replicas=2), (100, 100), {"small": 1, "large": 1}, 4),
        (RaySettings(num_replicas=60), (100, 100), {"small": 16, "large": 44}, 1),
    ],
)
def test_replicas_on_cpus_fit_into_memory_and_share_the_cores(
    settings: RaySettings, memory_gb: tuple[int, int], expected: dict[str, int], threads: int
) -> None:
    nodes = [node("small", cpus=4, memory_gb=memory_gb[0]), node("large", cpus=11, memory_gb=memory_gb[1])]
    assert Counter(settings.slots(nodes, on_gpus=False, replica_bytes=36.4e9)) == expected
    assert settings.threads_per_replica(nodes, replica_bytes=36.4e9) == threads
    environment = settings.replica_options(nodes, on_gpus=False, replica_bytes=36.4e9)["runtime_env"]["env_vars"]
    assert environment["OMP_NUM_THREADS"] == str(threads)
    said = memory_line(settings, nodes, replica_bytes=36.4e9)
    wanted = len(settings.slots(nodes, on_gpus=False))
    held = sum(expected.values())
    assert said.startswith(f"{held} of the {wanted} replicas that the cores hold, since each takes about 36 GB") == (
        held < wanted
    )


def test_replicas_on_gpus_do_not_count_the_nodes_memory() -> None:
    nodes = [node("one", cpus=8, gpus=2, memory_gb=10)]
    assert RaySettings().slots(nodes, on_gpus=True, replica_bytes=36.4e9) == ["one", "one"]


def test_a_run_that_lost_its_gpus_does_not_resume_on_cpus() -> None:
    assert RaySettings().slots([SMALL], on_gpus=True) == []


@pytest.mark.parametrize(
    ("settings", "nodes", "message"),
    [
        (RaySettings(cpus_per_task=12), [SMALL, LARGE], "ray.cpus_per_task 12: the largest node has 11 CPUs"),
        (RaySettings(cpus_per_replica=12), [SMALL, LARGE], "ray.cpus_per_replica 12: the largest node has 11 CPUs"),
        (RaySettings(gpus_per_replica=4), GPUS, "ray.gpus_per_replica 4: the largest node has 3 GPUs"),
        (RaySettings(num_replicas=5), GPUS, "ray.num_replicas 5: the GPUs hold 4"),
    ],
)
def test_what_no_node_can_meet_is_refused(settings: RaySettings, nodes: list[Node], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings.check(nodes, on_gpus=nodes is GPUS)


def test_gpus_of_a_replica_are_a_fraction_or_whole() -> None:
    with pytest.raises(ValueError, match="gpus_per_replica must be a fraction below 1 or a whole number, not 1.5"):
        RaySettings(gpus_per_replica=1.5)


def test_a_cluster_is_described_in_a_few_words() -> None:
    described = {"NodeID": "n", "NodeManagerHostname": "host", "NodeManagerAddress": "10.0.0.1", "Alive": True}
    gpus = {"Resources": {"CPU": 16.0, "GPU": 4.0, "accelerator_type:A100": 1.0}}
    nodes = alive_nodes([described | gpus, described | gpus, described | {"Resources": {}}])
    assert describe_nodes(nodes) == "3 nodes, 32 CPUs, 8 GPUs (A100)"
    assert describe_nodes([SMALL]) == "1 node, 4 CPUs, 0 GPUs"


def test_dead_nodes_do_not_count() -> None:
    described = {
        "NodeID": "n",
        "NodeManagerHostname": "host",
        "NodeManagerAddress": "10.0.0.1",
        "Resources": {"CPU": 2.0, "memory": 7.0},
    }
    (alive,) = alive_nodes([described | {"Alive": True}, described | {"Alive": False}])
    assert (alive.cpus, alive.gpus, alive.memory_bytes) == (2, 0, 7)
    with pytest.raises(RayLost, match="no node of this Ray is alive"):
        alive_nodes([described | {"Alive": False}])


def test_a_head_that_comes_back_is_waited_for_and_one_that_does_not_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{head.getsockname()[1]}"
        assert "refused" in no_answer(address)
        back = threading.Timer(0.3, head.listen)
        back.start()
        wait_for_head(address)
        back.join()
    monkeypatch.setattr(cluster, "LOST_S", 0.0)
    with pytest.raises(RayLost, match="does not answer"):
        wait_for_head(address)


@pytest.mark.parametrize(
    ("cpus", "cpus_per_task", "most", "num_tasks"),
    [([2], 1, 6, 2), ([2], 1, 1, 1), ([8, 8], 2, 30, 8), ([8, 8], 2, 3, 3), ([0.5], 1, 4, 1), ([3], 2, 4, 1), ([0], 1, 4, 1)],
)
def test_as_many_tasks_as_the_cpus_hold(*, cpus: list[float], cpus_per_task: float, most: int, num_tasks: int) -> None:
    nodes = [node(str(index), cpus=number) for index, number in enumerate(cpus)]
    assert RaySettings(cpus_per_task=cpus_per_task).num_tasks(nodes, most=most) == num_tasks
