"""Captions images: `python -m captioner.run --images SRC [SRC …] --out RUN`, alone or as a Ray job.

Plans the work once, runs what is not committed yet on Ray, and can be stopped and started again at any moment: all state is
in the run's folder, and the same command goes on where the commits end.
"""

import json
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from captioner.config import CaptionConfig, run_id, run_settings
from dataset_builder.cluster import check_paths
from dataset_builder.command_line import UserError, run_command
from dataset_builder.rejection import allowed_rejections
from dataset_builder.storage import Folder, is_local_path

if TYPE_CHECKING:
    from captioner.caption_job import CaptionJob
    from dataset_builder.plan import Plan


def main(config: CaptionConfig) -> int:
    """Runs a captioning job to its end; returns 0, or 1 where more images were rejected than the budget allows."""
    from dataset_builder.unit_run import run_job
    from dataset_builder.units import committed_units

    started = time.perf_counter()
    check_paths([*config.images, config.out])
    run = Folder(config.out)
    job = caption_job(config)
    plan = plan_run(config, run, job)
    done = committed_units(run)
    units = [unit for unit in plan.units(limit=config.limit) if unit.number not in done]
    print(_headline(config, job, plan, num_units=len(units)))
    if units:
        visible = {config.out + "/run.json": job.run_id} if is_local_path(config.out) else {}
        visible |= {path: "" for path in config.images if is_local_path(path)}
        budget = _budget(config, run, plan)
        if not run_job(job, units, settings=config.ray, visible=visible, budget=budget, started=started):
            return 1
    return _report(config, run, plan)


def caption_job(config: CaptionConfig) -> "CaptionJob":
    """The work on a unit, with everything resolved that can be resolved before Ray starts. Raises UserError."""
    from captioner.caption_job import CaptionJob
    from captioner.model_source import resolve_model
    from captioner.prompts import load_prompts
    from dataset_builder.tagging import NounTagger
    from dataset_builder.text_view import T5View

    model = resolve_model(config.model, revision=config.revision)
    prompts = load_prompts(config.prompts)
    settings = run_settings(
        config, model=model, prompts=prompts, tagger=NounTagger(config.tagger).describe(), t5=T5View(config.t5).describe()
    )
    return CaptionJob(
        run=config.out,
        run_id=run_id(settings),
        settings=json.dumps(settings),
        model=model,
        prompts=prompts,
        generation=config.generation,
        limits=config.limits,
        tagger=config.tagger,
        t5=config.t5,
    )


def plan_run(config: CaptionConfig, run: Folder, job: "CaptionJob") -> "Plan":
    """Creates or checks run.json, and plans the images that are not planned yet. Raises UserError."""
    from dataset_builder.locations import normalise
    from dataset_builder.plan import extend_plan
    from dataset_builder.sources import carried_columns, find_sources

    sources = find_sources(config.images)
    carried: dict[str, str] = {}
    for source in sources:
        carried |= carried_columns(source)
    settings = json.loads(job.settings)
    record = {
        "run_id": job.run_id,
        "settings": settings,
        "images": [normalise(source) for source in config.images],
        "licence": config.licence,
        "carried": carried,
        "argv": sys.argv,
        "config": asdict(config),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if run.exists() and not run.exists("run.json") and run.names():
        raise UserError(f"{run.url} is not empty and holds no captioning run: give another --out")
    if not run.create("run.json", json.dumps(record, indent=1).encode()):
        before = json.loads(run.read("run.json"))
        _check_same_run(run, before=before["settings"], now=settings)
        _check_same_images(run, before=before["images"], now=record["images"])
        if before["carried"] != before["carried"] | carried:
            run.write("run.json", json.dumps(before | {"carried": before["carried"] | carried}, indent=1).encode())
    return extend_plan(run, sources, unit_size=config.unit_size)


def _check_same_run(run: Folder, *, before: dict[str, Any], now: dict[str, Any]) -> None:
    different = [name for name in now if before.get(name) != now[name]]
    if different:
        raise UserError(
            f"{run.url} holds a run with another {', '.join(different)}: give another --out, or the settings in its run.json"
        )


def _check_same_images(run: Folder, *, before: list[str], now: list[str]) -> None:
    """A run may get more sources, never others: what was planned stays planned."""
    missing = [source for source in before if source not in now]
    if missing:
        raise UserError(f"{run.url} holds a run over {', '.join(missing)}: name that too, or give another --out")


def _budget(config: CaptionConfig, run: Folder, plan: "Plan") -> int:
    """How many images may still be rejected before the run stops."""
    from dataset_builder.units import read_commits

    rejected = sum(sum(commit.rejected.values()) for commit in read_commits(run))
    return allowed_rejections(config.max_rejected, plan.num_images) - rejected


def _headline(config: CaptionConfig, job: "CaptionJob", plan: "Plan", *, num_units: int) -> str:
    prompts = ", ".join(prompt.name for prompt in job.prompts.prompts)
    repeated = f", {plan.num_repeated} listed more than once" if plan.num_repeated else ""
    return (
        f"run {job.run_id} in {config.out}: {plan.num_images} images in {plan.num_units} units{repeated}; "
        f"{num_units} units to do; model {config.model}; prompts {job.prompts.name} ({prompts})"
    )


def _report(config: CaptionConfig, run: Folder, plan: "Plan") -> int:
    from captioner.status import read_status

    status = read_status(run)
    print(status.line())
    if status.rejected > allowed_rejections(config.max_rejected, plan.num_images):
        print(f"error: more images were rejected than --max_rejected {config.max_rejected} allows", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            CaptionConfig,
            main,
            prog="python -m captioner.run",
            example="python -m captioner.run --images photos/ --out runs/photos",
        )
    )
