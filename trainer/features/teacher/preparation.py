"""Preparation of a teacher's features: for each resolution, what is there is checked and the units that are missing are run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from foundry.errors import UserError
from foundry.reporting.lines import say
from foundry.storage.folder import Folder
from foundry.storage.locations import absolute, is_local_path
from foundry.units.commits import committed_units, read_commits
from foundry.units.rejection import allowed_rejections
from foundry.units.run import run_job
from foundry.wording import counted
from model.encoders.vision_tower import VisionTowerConfig
from trainer.features.config import PrecomputeConfig
from trainer.features.info import FEATURES_FILE, read_info
from trainer.features.plan import read_feature_plan
from trainer.features.preparation import stores_of
from trainer.features.teacher.job import TeacherEncoders, TeacherFacts, TeacherJob, TeacherUnit
from trainer.features.teacher.store import TEACHER_FILE, TeacherInfo, read_teacher_info, teacher_folder

_TAKEN = 1.3  # of the weights' size: with activations


@dataclass(frozen=True, kw_only=True)
class TeacherTasks:
    """The units of one resolution that the teacher has not seen."""

    job: TeacherJob
    units: list[TeacherUnit]
    replica_bytes: float


def prepare_teacher(
    config: PrecomputeConfig, *, describe: Callable[[TeacherEncoders], TeacherFacts]
) -> Mapping[int, TeacherTasks]:
    """Units that the teacher has to encode, by resolution. `describe` loads the tower and the VAE.

    Raises UserError for a store with another teacher's features, for another VAE, and for cells that do not fit the latents.
    """
    chosen = config.teacher
    assert chosen.name is not None, "a teacher is named"
    tower = VisionTowerConfig(name=chosen.name, revision=chosen.revision, dtype=chosen.dtype)
    encoders = TeacherEncoders(tower=tower, vae=config.vae)
    facts = describe(encoders)
    return {
        resolution: _tasks(config, folder, encoders=encoders, facts=facts) for resolution, folder in stores_of(config).items()
    }


def run_teacher(config: PrecomputeConfig, tasks: Mapping[int, TeacherTasks], *, started: float) -> int:
    """Makes the features that are missing; returns 0, or 1 where too many samples failed."""
    for resolution, task in tasks.items():
        folder = teacher_folder(task.job.store)
        num = sum(unit.num_images for unit in task.units)
        say(f"teacher {task.job.info.name} at {resolution} px: {counted(num, 'sample')} in {counted(len(task.units), 'unit')}")
        before = sum(commit.num_rejected for commit in read_commits(folder))
        visible = {f"{task.job.store}/{FEATURES_FILE}": task.job.features.fingerprint}
        if task.units and not run_job(
            task.job,
            task.units,
            settings=config.ray,
            visible={path: text for path, text in visible.items() if is_local_path(path)},
            budget=allowed_rejections(config.max_rejected, num) - before,
            started=started,
            replica_bytes=task.replica_bytes,
            what="samples",
        ):
            return 1
        commits = read_commits(folder)
        num_bytes = sum(file.num_bytes for commit in commits for file in commit.files.values())
        samples, rejected = sum(commit.planned for commit in commits), sum(commit.num_rejected for commit in commits)
        without = f", {counted(rejected, 'sample')} without finite vectors: see rejected/" if rejected else ""
        say(f"{folder.url}: {counted(samples, 'sample')}, {num_bytes / 1e6:.1f} MB{without}")
    return 0


def _tasks(config: PrecomputeConfig, folder: Folder, *, encoders: TeacherEncoders, facts: TeacherFacts) -> TeacherTasks:
    features, url = read_info(folder), absolute(folder.url)
    if features.vae.fingerprint != facts.vae_fingerprint:
        raise UserError(
            f"the features in {url} come from another VAE ({features.vae.name}, {features.vae.fingerprint}): give that one",
            setting="vae.name",
        )
    patch_px = config.teacher.patch_px
    wrong = [size for size in features.buckets if size[0] % patch_px or size[1] % patch_px]
    if wrong or patch_px % features.downsampling:
        height, width = (wrong or features.buckets)[0]
        raise UserError(
            f"cells of {patch_px} px do not cut images of {height} x {width} px into latents of {features.downsampling} px: "
            f"give {features.downsampling} times the patch_size of the network",
            setting="teacher.patch_px",
        )
    info = TeacherInfo(
        name=encoders.tower.name,
        revision=encoders.tower.revision,
        fingerprint=facts.fingerprint,
        width=facts.width,
        patch_px=patch_px,
        features=features.fingerprint,
    )
    info = _published(url, info)
    done, planned = committed_units(teacher_folder(url)), {unit.number: unit for unit in read_feature_plan(folder).units}
    units = []
    for commit in read_commits(folder):
        if "latents" in commit.files and commit.unit not in done:
            height, width = planned[commit.unit].buckets[features.resolution]
            bucket = (height // features.downsampling, width // features.downsampling)
            rows = commit.files["latents"].rows
            units.append(TeacherUnit(number=commit.unit, part="", row_group=0, num_images=rows, bucket=bucket))
    job = TeacherJob(store=url, features=features, info=info, encoders=encoders)
    return TeacherTasks(job=job, units=units, replica_bytes=_TAKEN * facts.num_bytes)


def _published(url: str, info: TeacherInfo) -> TeacherInfo:
    """teacher.json, written where it is not there. Raises UserError for that of another teacher."""
    folder = teacher_folder(url)
    folder.create(TEACHER_FILE, info.to_json())
    found = read_teacher_info(url)
    assert found is not None, "it was written just now"
    if replace(found, name=info.name, revision=info.revision) != info:
        told = [f"{one.name} ({one.fingerprint}) in cells of {one.patch_px} px of {one.features}" for one in (found, info)]
        raise UserError(
            f"{folder.url} holds what {told[0]} saw, expected {told[1]}: remove {folder.url} to compute it again",
            setting="teacher.name",
        )
    return found
