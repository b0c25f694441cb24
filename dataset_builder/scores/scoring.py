"""Scoring from the plan of units to the summary: what is not scored yet is scored on Ray."""

import time
from collections.abc import Sequence
from dataclasses import replace

from dataset_builder.scores.config import ScoreConfig
from dataset_builder.scores.job import score_job
from dataset_builder.scores.plan import find_scored, plan_scores
from dataset_builder.sql.score_files import score_folder
from foundry.hardware import Dtype, resolve_dtype
from foundry.reporting.lines import say
from foundry.storage.folder import Folder, store_errors
from foundry.storage.locations import is_local_path
from foundry.units.cluster import RaySettings, check_paths
from foundry.units.commits import Commit, Unit, read_commits
from foundry.units.rejection import allowed_rejections
from foundry.units.run import run_job
from foundry.wording import counted

_DTYPE_FILE = "dtype"


def score_images(config: ScoreConfig) -> bool:
    """Scores the images of a run or data set; False if more of them are rejected than the budget allows.

    Raises UserError for a source or a model that is unavailable.
    """
    started = time.perf_counter()
    source, clip, aesthetic, ray = config.source, config.clip, config.aesthetic, config.ray
    check_paths([path for path in (source, aesthetic) if path])
    with store_errors(Folder(source)):
        scored = find_scored(source)
        job = score_job(scored, clip=clip, aesthetic=aesthetic, batch_size=config.batch_size)
        out = score_folder(scored.folder, job.score_id)
        units = plan_scores(scored, out)
        left = _left(units, read_commits(out))
    if left and job.clip:
        job = replace(job, dtype=_dtype(out, ray))
    computed = f"; {clip} in {job.dtype}" if left and job.clip else ""
    to_do = f"{len(left)} of {counted(len(units), 'unit')} to do"
    say(f"scores {job.score_id} of {source}: {_num_images(units)} images, {to_do}{computed}")
    budget = allowed_rejections(config.max_rejected, _num_images(units))
    if left:
        again = {unit.number for unit in left}
        rejected = sum(commit.num_rejected for commit in read_commits(out) if commit.unit not in again)
        paths = [source, aesthetic or "", clip if job.clip and job.clip.is_folder else ""]
        visible = {path: "" for path in paths if path and is_local_path(path)}
        if not run_job(job, left, settings=ray, visible=visible, budget=budget - rejected, started=started):
            return False
    commits = read_commits(out)
    rejected = sum(commit.num_rejected for commit in commits)
    say(f"{_num_images(units)} images = {sum(commit.completed for commit in commits)} scored + {rejected} rejected")
    return rejected <= budget


def _left(units: Sequence[Unit], commits: Sequence[Commit]) -> list[Unit]:
    """The units that are not scored, and those with images that a retry has captioned since: they are scored as a whole."""
    scored = {commit.unit: commit for commit in commits}
    new = [unit for unit in units if unit.number not in scored]
    grown = [unit for unit in units if unit.number in scored and scored[unit.number].planned < unit.num_images]
    return new + [replace(unit, retry=scored[unit.number].retry + 1) for unit in grown]


def _dtype(out: Folder, ray: RaySettings) -> Dtype:
    """The number format that this scoring began with, else the one that the replicas' hardware is fast in.

    Attaches to Ray to find that out.
    """
    from foundry.units.ray_session import dtype_of_replicas, start_ray

    if not out.exists(_DTYPE_FILE):
        start_ray(ray)
        out.create(_DTYPE_FILE, dtype_of_replicas(ray).encode())
    return resolve_dtype(out.read(_DTYPE_FILE).decode(), "cpu")


def _num_images(units: Sequence[Unit]) -> int:
    return sum(unit.num_images for unit in units)
