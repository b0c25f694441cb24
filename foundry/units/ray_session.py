"""Ray session of this process: started or joined, its nodes, what they see, and the number format of their hardware."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import LocalRayletDiedError, RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from foundry.errors import RayLost, UserError
from foundry.hardware import AUTO_VARIABLE, Dtype, auto_dtype
from foundry.reporting.lines import say
from foundry.units.bisection import cause_of
from foundry.units.cluster import Node, RaySettings, alive_nodes, no_answer, unseen_paths
from foundry.units.workers import describe
from foundry.wording import counted

VISIBLE_S = 300.0
START_TRIES = 3
_TOKEN = (
    "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the token of its head (`ray get-auth-token` there prints it), or "
    "RAY_AUTH_TOKEN_PATH to a file that holds it"
)


def start_ray(settings: RaySettings) -> None:
    """Attaches to the Ray that the settings name, or starts one that ends with this process; once in a process.

    Then waits for the GPUs that the settings want. Raises UserError if the address does not answer, or the GPUs don't come.
    """
    if ray.is_initialized():
        return
    _connect(settings)
    wait_for_gpus(settings.wait_for_gpus, timeout_s=settings.wait_for_gpus_s, setting="ray.wait_for_gpus_s")


def wait_for_gpus(count: int, *, timeout_s: float, setting: str) -> None:
    """Waits until `count` GPUs are free; a cluster with an autoscaler adds nodes meanwhile.

    They are asked for by a placement group, which ends with this process however that ends, and is given back at once: what
    runs next takes its place long before the autoscaler's idle timeout. Raises UserError after `timeout_s`, with `setting`.
    """
    if not count or ray.available_resources().get("GPU", 0) >= count:
        return
    say(f"waiting for {counted(count, 'GPU')}, {timeout_s:g} s at most")
    group = placement_group([{"GPU": 1.0}] * count)
    came = group.wait(timeout_s)
    remove_placement_group(group)
    if not came:
        held, free = (found.get("GPU", 0) for found in (ray.cluster_resources(), ray.available_resources()))
        raise UserError(
            f"{counted(count, 'GPU')} did not get free within {timeout_s:g} s: this Ray has {held:g}, {free:g} of them free; "
            "wait for fewer, or longer",
            setting=setting,
        )


def _connect(settings: RaySettings) -> None:
    """Attaches to the Ray that the settings name, or starts one. Raises UserError where the address does not answer."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # calls that are started again leave errors that nobody reads
    address = settings.resolved_address
    if address is None:
        _start_own_ray()
        return
    advice = "start one, or leave the address out"
    if "://" in address:
        raise UserError(f"{address} is not host:port or auto: {advice}; from outside a cluster, use `ray job submit`")
    unanswered = no_answer(address) if ":" in address else ""
    if unanswered:
        raise UserError(f"no Ray answers at {address} ({unanswered}): {advice}")
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError, RayError) as error:
        if _is_about_authentication(error):
            raise UserError(
                f"the Ray at {address} refuses this process, which lacks its authentication token: {_TOKEN}"
            ) from None
        raise UserError(f"no Ray answers at {address} ({describe(error)}): {advice}") from None


def _is_about_authentication(error: BaseException | None) -> bool:
    """Whether the error, or one that it came from, says so. Ray has a class for it, but does not always raise that."""
    while error is not None:
        if "authenticat" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def _start_own_ray() -> None:
    """Tries more than once: each part of Ray gives the next one half a minute, which a busy machine exceeds."""
    folder = _temporary_folder()
    for _ in range(START_TRIES):
        try:
            ray.init(
                address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, _temp_dir=folder
            )
        except Exception as error:  # noqa: BLE001 - Ray raises a bare Exception where its processes take longer than it waits
            ray.shutdown()
            failed = describe(error)
            if isinstance(error, OSError) and (error.filename or "AF_UNIX" in str(error)):  # another try would fail alike
                raise UserError(
                    f"Ray cannot keep its sockets and logs in {folder} ({failed}): set RAY_TMPDIR to a local folder, which can "
                    "be written and has a short path, such as RAY_TMPDIR=/tmp"
                ) from None
        else:
            return
    raise UserError(f"Ray could not start on this machine ({failed}): run this again when it is less busy")


def _temporary_folder() -> str:
    """Folder in which Ray keeps sockets and logs. Ray itself takes an empty variable for the working directory."""
    return os.path.abspath(os.path.join(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray"))


def replicas_use_gpus(settings: RaySettings) -> bool:
    """Whether the replicas will run on GPUs; asks the Ray that was started."""
    return settings.uses_gpus(ray.cluster_resources())


def dtype_of_replicas(settings: RaySettings) -> Dtype:
    """The number format that `auto` means: bfloat16 where each node that will hold a replica computes in it, else float32.

    Raises UserError if a node does not answer.
    """
    on_gpus = replicas_use_gpus(settings)
    if AUTO_VARIABLE in os.environ or (settings.resolved_address is None and not on_gpus):
        return auto_dtype("cpu")  # what the user says of all machines, or this process's own Ray, on this machine
    slots = set(settings.slots(nodes := cluster_nodes(), on_gpus=on_gpus))
    options = settings.replica_options(nodes, on_gpus=on_gpus)
    looks = {
        node: ray.remote(**{**options, **on_node(node.node_id, soft=False)})(auto_dtype).remote("cuda" if on_gpus else "cpu")
        for node in nodes
        if node.node_id in slots
    }
    found = {_answer(node, look, what="tell its number format") for node, look in looks.items()}
    return "float32" if "float32" in found else "bfloat16"


def cluster_nodes() -> list[Node]:
    """The nodes of the Ray that was started. Raises RayLost."""
    return alive_nodes(ray.nodes())


def check_visible(paths: Mapping[str, str]) -> None:
    """Raises UserError unless every node sees each local path, with the text in it where a text is given."""
    looks = {node: ray.remote(num_cpus=0, **on_node(node.node_id, soft=False))(unseen_paths) for node in cluster_nodes()}
    unseen = {node: look.remote(dict(paths)) for node, look in looks.items()}
    for node, ref in unseen.items():
        if found := _answer(node, ref, what=f"look at {', '.join(paths)}"):
            raise UserError(
                f"{', '.join(found)}: not visible on node {node.name}; use a folder that all nodes share, or object storage"
            )


def _answer(node: Node, ref: ray.ObjectRef, *, what: str) -> Any:
    """Result of a task on a node. Raises UserError if it fails."""
    try:
        return ray.get(ref, timeout=VISIBLE_S)
    except RayError as error:
        raise UserError(f"node {node.name} could not {what}: {cause_of(error)}") from error


def on_node(node_id: str, *, soft: bool, if_free: bool = False) -> dict[str, Any]:
    """The Ray option that binds a task or an actor to a node; `soft`: another one will do where that is lost; `if_free`: or has
    no free CPU."""
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=soft, _spill_on_unavailable=if_free)
    return {"scheduling_strategy": strategy}


def is_done(ref: ray.ObjectRef) -> bool:
    """Whether a call has ended, well or not. Never waits."""
    return bool(ray.wait([ref], timeout=0, fetch_local=False)[0])


def error_of(ref: ray.ObjectRef) -> Exception | None:
    """The error of an ended call; None if it ended well. Raises RayLost."""
    try:
        ray.get(ref)
    except LocalRayletDiedError as error:
        raise RayLost(describe(error)) from error
    except RayError as error:
        found: Exception = error
        return found
    return None
