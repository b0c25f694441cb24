"""Drawing on Ray: each worker opens the pipeline of a checkpoint and draws shard after shard into one shared folder."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import ActorPool
from tqdm import tqdm

from foundry.errors import UserError
from foundry.hardware import Dtype, cpu_environment
from foundry.storage.locations import absolute_if_there
from foundry.units.bisection import TRIES, cause_of
from foundry.units.cluster import RaySettings
from foundry.units.ray_session import check_visible, dtype_of_replicas, start_ray
from model.generation.pipeline import Pipeline
from trainer.evaluation.drawing import Drawing


def dtype_of_drawers(device: str) -> Dtype:
    """The number format that `auto` means on the workers that draw. Raises UserError where a node does not answer."""
    settings = RaySettings(gpus_per_replica=1 if device in ("auto", "cuda") else 0)
    start_ray(settings)
    return dtype_of_replicas(settings)


def draw_on_ray(drawing: Drawing, indices: Sequence[int]) -> None:
    """Draws the images of these indices on `num_workers` workers.

    Raises UserError for more workers than GPUs, a folder that a node does not see, or a worker that fails again and again.
    """
    config = drawing.config
    drawing = replace(
        drawing,
        paths=tuple(path.absolute() for path in drawing.paths),
        config=replace(
            config,
            checkpoint=absolute_if_there(config.checkpoint),
            text_encoder=absolute_if_there(config.text_encoder),
            vae=absolute_if_there(config.vae),
        ),
    )
    start_ray(RaySettings())
    folder = drawing.paths[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    check_visible({str(folder): ""})
    options = _drawer_options(config.num_workers, use_gpu=config.runtime.device in ("auto", "cuda"))
    drawer = ray.remote(max_restarts=TRIES, max_task_retries=TRIES, **options)(_Drawer)
    pool = ActorPool([drawer.remote() for _ in range(config.num_workers)])
    shared = ray.put(drawing)  # an argument of each call: one of the constructor would be lost to an actor that starts again
    try:
        with tqdm(total=len(indices), unit="image") as bar:
            for number in pool.map_unordered(lambda actor, shard: actor.draw.remote(shared, shard), drawing.shards(indices)):
                bar.update(number)
    except RayError as error:
        raise UserError(
            f"drawing failed on a worker ({cause_of(error)}): the same command resumes after the images drawn"
        ) from error


class _Drawer:
    """A worker with the pipeline of a checkpoint, which it opens for the first shard."""

    def __init__(self) -> None:
        self._pipeline: Pipeline | None = None

    def draw(self, drawing: Drawing, indices: Sequence[int]) -> int:
        """Draws a shard; returns how many images it has. Images that a lost worker has drawn are not drawn again."""
        self._pipeline = self._pipeline or drawing.open_pipeline()
        drawing.draw(self._pipeline, drawing.missing(indices))
        return len(indices)


def _drawer_options(num_workers: int, *, use_gpu: bool) -> dict[str, Any]:
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0)) if use_gpu else 0
    if gpus:
        if gpus < num_workers:
            raise UserError(f"--num_workers {num_workers}: this Ray has {gpus} GPUs, one for each worker")
        return {"num_gpus": 1, "num_cpus": 0}
    num_threads = max(1, int(resources.get("CPU", 1)) // num_workers)
    return {"num_cpus": 0, "runtime_env": {"env_vars": cpu_environment(num_threads=num_threads)}}
