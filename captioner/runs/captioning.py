"""Captioning job: plans the work once, runs on Ray what is not committed yet, and reports.

All state is in the run's folder, so that the same command resumes where the commits end, whenever it was stopped.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from captioner.config import ENGINES, CaptionConfig
from captioner.engines.model_source import assumed_prompt
from captioner.prompt_sets import PROMPT_SETS
from captioner.runs.asking import invalid_line
from captioner.runs.job import CaptionJob, caption_job, query_of
from captioner.runs.questions import check_metadata_names
from captioner.runs.spending import Spending
from captioner.runs.start import begin, check_commits, check_folder, committed_settings, keeps_plan, record_start, settle_dtype
from captioner.runs.toy_warning import ToyWarning
from dataset_builder.concepts.t5_view import AUTO
from dataset_builder.runs.carried_types import record_types
from dataset_builder.runs.plan import Plan, extend_plan, read_plan
from dataset_builder.runs.source_run import chosen_images, plan_from_run, read_source_record
from dataset_builder.runs.status import RunStatus, status_of
from dataset_builder.sql.noun_blocks import merge_counts_of
from dataset_builder.sql.run_files import RunFiles
from foundry.errors import UserError
from foundry.images.sources import Source, find_sources
from foundry.reporting.lines import say
from foundry.storage.file_kinds import PassedOver
from foundry.storage.folder import Folder, store_errors
from foundry.storage.locations import is_local_path, normalise
from foundry.storage.run_record import RunRecord, record_carried
from foundry.units.cluster import RaySettings, check_paths, describe_nodes, memory_line
from foundry.units.commits import Commit, Unit, read_commits
from foundry.units.rejection import allowed_rejections
from foundry.units.retries import start_retry
from foundry.wording import counted


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """A run whose run.json and plan are there, and the work on its units."""

    config: CaptionConfig
    run: Folder
    job: CaptionJob
    record: RunRecord
    plan: Plan
    passed_over: PassedOver


def caption_images(config: CaptionConfig) -> int:
    """Runs or resumes a captioning job; returns 0, or 1 where more images were rejected than the budget allows."""
    from foundry.units.run import run_job

    started = time.perf_counter()
    planned = _prepare(config)
    config, run, job, record, plan = planned.config, planned.run, planned.job, planned.record, planned.plan
    commits = read_commits(run)
    check_commits(run, commits, run_id=job.run_id)
    done = {commit.unit for commit in commits}
    wanted = plan.units(limit=config.limit)
    units = [unit for unit in wanted if unit.number not in done]
    _print_beginning(planned, num_units=len(units))
    retried: tuple[Unit, ...] = ()
    if config.retry_rejected is not None:
        retried = _start_retry(run, plan, reasons=config.retry_rejected)
        commits = read_commits(run)
    allowed = _allowed(config, wanted, commits)
    spending = Spending(config.endpoint, commits)
    if (units or retried) and (excess := spending.excess()):
        say(f"error: {excess}", err=True)
        return 1
    if units or retried:
        # An image that is tried again counts once it is rejected again.
        rejected = sum(commit.num_rejected for commit in commits) - sum(unit.num_images for unit in retried)
        if not run_job(
            job,
            [*units, *retried],
            settings=replica_settings(config),
            visible=_visible(config, job, images=config.images or record.images),
            budget=allowed - rejected,
            started=started,
            replica_bytes=job.replica_bytes,
            on_ray=lambda: _record_start(config, run, job),
            on_commit=_on_commit(run, job, spending),
        ):
            return 1
        commits = read_commits(run)
        check_commits(run, commits, run_id=job.run_id)
    files = RunFiles(run, record, tuple(commits))
    merge_counts_of(files)
    if units or retried:
        record_types(files, plan)
    if line := spending.line():
        say(line)
    with store_errors(run):
        plan = read_plan(run, unit_size=plan.unit_size)
    return _report(run, status_of(plan, commits), allowed=allowed)


def _prepare(config: CaptionConfig) -> _Planned:
    """Checks all that can be checked before work begins, and plans. Raises UserError."""
    named = [config.captions_from] if config.captions_from else config.images
    check_paths([*named, config.out, *_path_settings(config)])
    config = _with_absolute_paths(config)
    if config.captions_from == config.out:
        raise UserError(f"captions_from is the run of this command, {config.out}: give another", setting="out")
    run = Folder(config.out)
    record = check_folder(run)
    source = None if config.captions_from is None else read_source_record(config.captions_from)
    job = caption_job(config, before=committed_settings(run, record), source=source)
    passed_over = PassedOver()
    sources = [] if source else find_sources(config.images, passed_over=passed_over, ignore=config.ignore)
    record, plan = plan_run(config, run, job, sources, before=record, source=source)
    check_metadata_names(job.prompts, record, plan)
    job, record = _settled(config, run, job, record)
    return _Planned(config=config, run=run, job=job, record=record, plan=plan, passed_over=passed_over)


def _print_beginning(planned: _Planned, *, num_units: int) -> None:
    """Prints what is about to be done, and what was passed over."""
    config, job, plan = planned.config, planned.job, planned.plan
    say(_headline(config, job, plan, num_units=num_units))
    if line := assumed_prompt(config.model, job.model.prompt_format):
        say(line)
    if line := planned.passed_over.line(in_tars=plan.num_passed_over):
        say(line)


def replica_settings(config: CaptionConfig) -> RaySettings:
    """Ray's settings for the engine: a server of the user's takes no GPU here, and a replica of vLLM may take several."""
    ray = config.ray
    if config.engine == "endpoint":
        return replace(ray, gpus_per_replica=0, num_replicas=ray.num_replicas or 1)
    if config.engine == "vllm" and config.vllm.num_gpus > 1:
        return replace(ray, gpus_per_replica=float(config.vllm.num_gpus))
    return ray


def _on_commit(run: Folder, job: CaptionJob, spending: Spending) -> Callable[[Commit], None]:
    """Handles each committed unit."""
    warning = ToyWarning(run) if job.model.is_mini else None
    warned: set[str] = set()

    def look(commit: Commit) -> None:
        spending.add(commit)
        if warning is not None:
            warning.look(commit)
        if not warned and (line := invalid_line(commit, job.prompts.prompts)):
            say(line, err=True)
            warned.add(line)

    return look


def plan_run(
    config: CaptionConfig,
    run: Folder,
    job: CaptionJob,
    sources: Sequence[Source],
    *,
    before: RunRecord | None,
    source: RunRecord | None = None,
) -> tuple[RunRecord, Plan]:
    """Creates run.json, or checks `before`, what it says; plans the images that are not planned yet. Raises UserError.

    `source` is the record of the run that captions_from names: then the images are that run's, and `sources` are none.
    """
    if config.captions_from is None:
        record = begin(config, run, job.settings, before=before, source=source)
        plan = extend_plan(run, sources, unit_size=record.unit_size)
        return record_carried(run, record, plan.carried), plan
    stays = _plan_stays(run, job, before=before)
    with nullcontext() if stays else chosen_images(config.captions_from, only=query_of(config)) as chosen:
        record = begin(config, run, job.settings, before=before, source=source)  # a wrong query leaves no run.json
        plan = plan_from_run(run, chosen, unit_size=record.unit_size)
    return record_carried(run, record, plan.carried), plan


def _plan_stays(run: Folder, job: CaptionJob, *, before: RunRecord | None) -> bool:
    """Whether the run has a plan already that holds for this work, so that its query is not asked again."""
    if before is None or not keeps_plan(before.settings, job.settings):
        return False
    with store_errors(run):
        return bool(read_plan(run, unit_size=before.unit_size).num_plans)


def _start_retry(run: Folder, plan: Plan, *, reasons: Sequence[str]) -> tuple[Unit, ...]:
    """The units of a retry, after a line that says what is tried again."""
    with store_errors(run):
        retry = start_retry(run, plan.units(), reasons=reasons)
    why = f" for {', '.join(sorted(set(reasons)))}" if reasons else ""
    if retry is None:
        say(f"nothing to retry: no image is rejected{why}")
        return ()
    images, units = counted(retry.num_images, "rejected image"), counted(len(retry.units), "unit")
    say(f"retry {retry.number}: {images}{why} in {units} to try again")
    return retry.units


def _settled(config: CaptionConfig, run: Folder, job: CaptionJob, record: RunRecord) -> tuple[CaptionJob, RunRecord]:
    """The same work in a dtype that is not `auto`: in what suits the replicas' devices; and the record that says so.

    The devices are those of the cluster, since the machine of this process may have other ones; so this attaches to Ray.
    """
    if job.generation.dtype != "auto" or job.model.is_served:
        return job, record
    from foundry.units.ray_session import dtype_of_replicas, start_ray

    start_ray(config.ray)
    job = job.with_dtype(dtype_of_replicas(config.ray))
    return job, settle_dtype(run, record, job.settings)


def _record_start(config: CaptionConfig, run: Folder, job: CaptionJob) -> None:
    """Records what this start runs on, of the Ray that is there, and says where memory holds fewer replicas than the cores."""
    from foundry.units.ray_session import cluster_nodes, replicas_use_gpus

    nodes, on_gpus = cluster_nodes(), replicas_use_gpus(config.ray)
    cluster = describe_nodes(nodes)
    record_start(run, config, dtype=job.generation.dtype, cluster=cluster, on_gpus=on_gpus, listed=job.model.listed)
    if not on_gpus and (line := memory_line(config.ray, nodes, replica_bytes=job.replica_bytes)):
        say(line)


def _path_settings(config: CaptionConfig) -> list[str]:
    """The settings, other than images and out, that are local paths here and not names."""
    names = (config.model, config.prompts, config.tagger.spacy_model, config.t5.tokenizer, config.vllm.lora or "mini")
    shipped = ("mini", AUTO, *PROMPT_SETS)
    return [name for name in names if name not in shipped and (name.startswith((".", "~")) or Path(name).exists())]


def _with_absolute_paths(config: CaptionConfig) -> CaptionConfig:
    """Local paths as workers need them, whose working directory is another one."""
    paths = _path_settings(config)

    def absolute(name: str) -> str:
        return normalise(name) if name in paths else name

    return replace(
        config,
        out=normalise(config.out),
        captions_from=None if config.captions_from is None else normalise(config.captions_from),
        images=[normalise(source) for source in config.images],
        model=absolute(config.model),
        tagger=replace(config.tagger, spacy_model=absolute(config.tagger.spacy_model)),
        t5=replace(config.t5, tokenizer=absolute(config.t5.tokenizer)),
        vllm=replace(config.vllm, lora=config.vllm.lora and absolute(config.vllm.lora)),
    )


def _visible(config: CaptionConfig, job: CaptionJob, *, images: Sequence[str]) -> dict[str, str]:
    """The local paths that every node must see, and the text that must be in them."""
    read_by_workers = (config.model, config.tagger.spacy_model, config.t5.tokenizer, config.vllm.lora)
    paths = {path: "" for path in (*images, config.captions_from or "") if path and is_local_path(path)}
    paths |= {path: "" for path in _path_settings(config) if path in read_by_workers}
    return paths | ({f"{config.out}/run.json": job.run_id} if is_local_path(config.out) else {})


def _headline(config: CaptionConfig, job: CaptionJob, plan: Plan, *, num_units: int) -> str:
    prompts = ", ".join(name for prompt in job.prompts.prompts for name in prompt.caption_names)
    repeated = f", {plan.num_repeated} listed more than once" if plan.num_repeated else ""
    earlier = f"; captions from {config.captions_from}" if job.prompts.caption_fields else ""
    padded = ", images padded to squares" if job.generation.image_fit == "pad" else ""
    return (
        f"run {job.run_id} in {config.out}: {counted(plan.num_images, 'image')} in {counted(plan.num_units, 'unit')}{repeated}"
        f"; {counted(num_units, 'unit')} to do; model {_model(config, job)}{padded}; "
        f"prompts {job.prompts.name} ({prompts}){earlier}"
    )


def _model(config: CaptionConfig, job: CaptionJob) -> str:
    if job.model.is_served:
        return f"{config.model} at {config.endpoint.url}"
    by = f" by {config.engine}" if config.engine != ENGINES[0] else ""
    return f"{config.model} in {job.generation.dtype}{by}"


def _allowed(config: CaptionConfig, wanted: Sequence[Unit], commits: Sequence[Commit]) -> int:
    """Number of images that may be rejected, of those that this command wants and those that earlier ones did."""
    planned = {unit.number: unit.num_images for unit in wanted} | {commit.unit: commit.planned for commit in commits}
    return allowed_rejections(config.max_rejected, sum(planned.values()))


def _report(run: Folder, status: RunStatus, *, allowed: int) -> int:
    for line in (status.line(), *status.advice(run.url)):
        say(line)
    if status.rejected > allowed:
        say(f"error: {status.rejected} images are rejected, max_rejected allows {allowed}", err=True)
        return 1
    return 0
