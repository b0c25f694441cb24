"""Encoders on a Ray worker, loaded once and described; units of features run as captions do (foundry/units/ray_driver.py)."""

from collections.abc import Mapping

import ray
from ray.exceptions import RayError

from foundry.errors import UserError
from foundry.units.bisection import TRIES, cause_of
from foundry.units.cluster import RaySettings
from foundry.units.ray_session import check_visible, cluster_nodes, dtype_of_replicas, replicas_use_gpus, start_ray
from trainer.features.job import EncoderFacts, Encoders


def start_and_describe(encoders: Encoders, settings: RaySettings, *, visible: Mapping[str, str]) -> EncoderFacts:
    """Starts Ray or attaches to it, and loads the encoders once on a worker to see what they are.

    Raises UserError where a node does not see a path of `visible`, or an encoder is unavailable there.
    """
    start_ray(settings)
    check_visible(visible)
    encoders = encoders.in_dtype(dtype_of_replicas(settings))
    options = settings.replica_options(cluster_nodes(), on_gpus=replicas_use_gpus(settings))
    try:
        facts: EncoderFacts = ray.get(ray.remote(max_retries=TRIES, **options)(_describe).remote(encoders))
    except RayError as error:
        raise UserError(f"the encoders cannot be loaded: {cause_of(error)}") from error
    return facts


def _describe(encoders: Encoders) -> EncoderFacts:
    return encoders.describe()
