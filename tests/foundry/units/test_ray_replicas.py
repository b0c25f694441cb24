"""Replicas without a Ray: which are started, tried again, replaced or left out as loads end and nodes are lost."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from foundry.errors import RayLost, UserError
from foundry.units import ray_replicas
from foundry.units.cluster import Node, RaySettings
from foundry.units.ray_replicas import ReplicaHandle, Replicas
from foundry.units.workers import JobFailed


@dataclass
class Cluster:
    """Its nodes, how each load ended (None: well; no entry: it is running), and which actors were killed."""

    nodes: list[Node] = field(default_factory=lambda: [node("a"), node("b")])
    ended: dict[Any, Exception | None] = field(default_factory=dict)
    killed: list[Any] = field(default_factory=list)
    launched: int = 0


def node(name: str) -> Node:
    return Node(node_id=name, name=name, cpus=1, gpus=0)


def raised() -> Exception:
    """As Ray hands over what the job's own code raised."""
    error = RuntimeError("with Ray's traceback")
    error.cause = JobFailed("ValueError: no such weights")  # type: ignore[attr-defined]
    return error


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    found = Cluster()

    def launch(_self: Replicas, node_id: str, *, failed_loads: int = 0) -> ReplicaHandle:
        found.launched += 1
        return ReplicaHandle(f"actor {found.launched}", node_id, f"load {found.launched}", failed_loads)

    monkeypatch.setattr(Replicas, "_launch", launch)
    monkeypatch.setattr(ray_replicas, "cluster_nodes", lambda: found.nodes)
    monkeypatch.setattr(ray_replicas, "is_done", found.ended.__contains__)
    monkeypatch.setattr(ray_replicas, "error_of", found.ended.__getitem__)
    monkeypatch.setattr(ray_replicas, "ray", SimpleNamespace(kill=found.killed.append))
    return found


def start(cluster: Cluster, *, most: int = 9, settings: RaySettings | None = None) -> tuple[Replicas, list[int]]:
    loaded: list[int] = []
    replicas = Replicas(
        "job",
        settings=settings or RaySettings(cpus_per_replica=1),
        on_gpus=False,
        replica_bytes=0,
        on_first_load=lambda: loaded.append(cluster.launched),
    )
    replicas.start(cluster.nodes, most=most)
    return replicas, loaded


def nodes_of(replicas: Replicas) -> list[str]:
    return [handle.node_id for handle in replicas.handles]


def test_a_replica_is_started_in_each_slot_but_no_more_than_there_is_work_for(cluster: Cluster) -> None:
    assert nodes_of(start(cluster)[0]) == ["a", "b"]
    assert nodes_of(start(cluster, most=1)[0]) == ["a"]


def test_the_first_load_is_told_once(cluster: Cluster) -> None:
    replicas, loaded = start(cluster)
    replicas.collect()
    assert (loaded, len(replicas.loading)) == ([], 2)
    cluster.ended["load 2"] = None
    replicas.collect()
    cluster.ended["load 1"] = None
    replicas.collect()
    assert (loaded, replicas.loading) == ([2], [])


def test_a_model_that_raises_before_any_has_loaded_ends_the_run(cluster: Cluster) -> None:
    replicas, _ = start(cluster)
    cluster.ended |= {"load 1": raised(), "load 2": raised()}
    with pytest.raises(UserError, match="the model could not be loaded: ValueError: no such weights$"):
        replicas.collect()
    assert cluster.killed == ["actor 1", "actor 2"]
    assert cluster.launched == 2


def test_a_load_that_dies_is_tried_once_more_and_names_its_limit(cluster: Cluster) -> None:
    replicas, _ = start(cluster, most=1, settings=RaySettings(cpus_per_replica=1, load_timeout_s=7))
    cluster.ended["load 1"] = RuntimeError("killed")
    replicas.collect()
    assert [handle.failed_loads for handle in replicas.handles] == [1]
    cluster.ended["load 2"] = RuntimeError("killed")
    with pytest.raises(UserError, match=r"could not be loaded: RuntimeError: killed \(ray.load_timeout_s is 7\)$"):
        replicas.collect()


def test_a_load_that_raises_where_others_work_is_tried_once_more(cluster: Cluster) -> None:
    replicas, _ = start(cluster)
    cluster.ended |= {"load 1": None, "load 2": raised()}
    replicas.collect()
    assert nodes_of(replicas) == ["a", "b"]
    cluster.ended["load 3"] = raised()
    replicas.collect()
    assert nodes_of(replicas) == ["a"], "the work continues with the rest"


def test_a_dead_replica_is_replaced_where_a_slot_is_free(cluster: Cluster) -> None:
    replicas, _ = start(cluster)
    cluster.nodes = [node("a"), node("c")]
    replicas.replace(replicas.handles[1])
    assert nodes_of(replicas) == ["a", "c"]
    assert cluster.killed == ["actor 2"]


def test_a_dead_replica_is_left_out_where_the_others_fill_the_nodes(cluster: Cluster) -> None:
    replicas, _ = start(cluster)
    cluster.nodes = [node("a")]
    replicas.replace(replicas.handles[1])
    assert nodes_of(replicas) == ["a"]
    cluster.nodes = [Node(node_id="d", name="d", cpus=0, gpus=0)]
    with pytest.raises(RayLost, match="no node is left that can hold the model"):
        replicas.replace(replicas.handles[0])


def test_all_are_killed_at_the_end(cluster: Cluster) -> None:
    start(cluster)[0].kill()
    assert cluster.killed == ["actor 1", "actor 2"]
