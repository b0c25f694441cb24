"""Encoders on a Ray worker, loaded once and described; units of features run as captions do (foundry/units/ray_driver.py)."""

from collections.abc import Mapping
from typing import Protocol, TypeVar

import ray
from ray.exceptions import RayError

from foundry.errors import UserError
from foundry.hardware import Dtype
from foundry.units.bisection import TRIES, cause_of
from foundry.units.cluster import RaySettings
from foundry.units.ray_session import check_visible, cluster_nodes, dtype_of_replicas, replicas_use_gpus, start_ray

Facts_co = TypeVar("Facts_co", covariant=True)
LIGHT_BYTES = 1e9
"""Weights that this process can take on besides the replicas."""


class Described(Protocol[Facts_co]):
    """Encoders that a worker can load."""

    def in_dtype(self, dtype: Dtype) -> "Described[Facts_co]":
        """The same in this number format, where theirs is `auto`."""

    def stored_bytes(self) -> int:
        """Size of their weights' files. Raises UserError if one is unavailable."""

    def describe(self) -> Facts_co:
        """Loads and describes them."""


def start_and_describe(encoders: Described[Facts_co], settings: RaySettings, *, visible: Mapping[str, str]) -> Facts_co:
    """Starts Ray or attaches to it, and loads the encoders once on a worker to see what they are.

    Light ones of a Ray on this machine's cores are loaded here: a worker would take seconds to import their libraries.
    Raises UserError if a node does not see a path of `visible`, or an encoder is unavailable there.
    """
    start_ray(settings)
    check_visible(visible)
    encoders = encoders.in_dtype(dtype_of_replicas(settings))
    on_gpus = replicas_use_gpus(settings)
    if settings.resolved_address is None and not on_gpus and encoders.stored_bytes() < LIGHT_BYTES:
        return encoders.describe()
    options = settings.replica_options(cluster_nodes(), on_gpus=on_gpus)
    try:
        facts: Facts_co = ray.get(ray.remote(max_retries=TRIES, **options)(_describe).remote(encoders))
    except RayError as error:
        raise UserError(f"the encoders cannot be loaded: {cause_of(error)}") from error
    return facts


def _describe(encoders: Described[Facts_co]) -> Facts_co:
    return encoders.describe()
