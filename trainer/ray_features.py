"""Asks a Ray worker what the encoders are; the units of features then run as captions do (dataset_builder/ray_units.py)."""

from collections.abc import Mapping

import ray
from ray.exceptions import RayError

from dataset_builder.cluster import RaySettings
from dataset_builder.command_line import UserError
from dataset_builder.culprits import TRIES, cause_of
from dataset_builder.ray_session import check_visible, cluster_nodes, replicas_use_gpus, start_ray
from trainer.precompute_job import EncoderFacts, Encoders


def start_and_describe(encoders: Encoders, settings: RaySettings, *, visible: Mapping[str, str]) -> EncoderFacts:
    """Starts Ray or attaches to it, and loads the encoders once on a worker to see what they are.

    Raises UserError where a node does not see a path of `visible`, or an encoder cannot be had there.
    """
    start_ray(settings)
    check_visible(visible)
    options = settings.replica_options(cluster_nodes(), on_gpus=replicas_use_gpus(settings))
    try:
        facts: EncoderFacts = ray.get(ray.remote(max_retries=TRIES, **options)(_describe).remote(encoders))
    except RayError as error:
        raise UserError(f"the encoders cannot be loaded: {cause_of(error)}") from error
    return facts


def _describe(encoders: Encoders) -> EncoderFacts:
    return encoders.describe()
