"""Build of a data set: opens the runs, takes the recipe's steps, writes samples and the account of all dropped images."""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builder.dataset.caption_steps import SelectionState
from dataset_builder.dataset.recipe import BuildConfig
from dataset_builder.dataset.samples import embed_images, sample_batches
from dataset_builder.dataset.selection import (
    dropped_captions_sql,
    dropped_sql,
    funnel_table,
    groups_sql,
    histograms,
    num_edited,
    num_left,
    select,
)
from dataset_builder.dataset.writer import DatasetWriter
from dataset_builder.reports.card import dataset_card, funnel_lines, published_card
from dataset_builder.runs.plan import read_plan
from dataset_builder.schema import DATASET_VERSION, DROPPED
from dataset_builder.sql.database import open_workbench
from dataset_builder.sql.dataset_files import DATASET_RECORD, STORED, DatasetFiles, is_dataset, read_dataset
from dataset_builder.sql.run_files import RunFiles, read_run
from dataset_builder.sql.views import SCORED
from foundry.commands import as_typed
from foundry.errors import UserError
from foundry.images.metadata import merge_types
from foundry.reporting.lines import say
from foundry.storage.folder import Folder, store_errors
from foundry.storage.hub import repository_at
from foundry.storage.hub_transfers import push_folder
from foundry.storage.locations import is_on_hub, normalise

_NOT_PART_OF_IT = ("captions", "out", "dry_run")
_MARK = "unfinished.txt"


@dataclass(frozen=True)
class Built:
    """Result of a build: `funnel` is schema.FUNNEL, `dataset` None after a dry run."""

    funnel: pa.Table
    dataset: DatasetFiles | None
    notes: tuple[str, ...] = ()


def build_and_report(config: BuildConfig) -> int:
    """Builds the data set, prints the funnel and returns 0. Raises UserError as build_dataset does."""
    with store_errors(Folder(config.out)):
        built = _build_on_hub(config) if is_on_hub(config.out) else build_dataset(config)
    say("\n".join([*built.notes, *funnel_lines(built.funnel)]))
    if built.dataset is None:
        say("a dry run: nothing is written")
    else:
        splits = ", ".join(f"{name} {number:,}" for name, number in built.dataset.splits.items())
        say(f"{config.out}: {splits}; look around with {as_typed('python -m dataset_builder.query')} {config.out}")
    return 0


def _build_on_hub(config: BuildConfig) -> Built:
    """The same in a repository of the hub: built in a temporary folder, and pushed."""
    repository = repository_at(config.out)
    if repository.kind != "dataset":
        raise UserError(f"{config.out}: expected hf://datasets/USER/NAME, found no data set's repository", setting="out")
    if config.dry_run or is_dataset(config.out):
        return build_dataset(config)
    with tempfile.TemporaryDirectory(prefix="t2i-build-") as scratch:
        folder = Path(scratch) / repository.name.rpartition("/")[2]
        built = build_dataset(replace(config, out=str(folder)))
        card = folder / "README.md"
        text = published_card(
            card.read_text(encoding="utf-8"), read_dataset(str(folder)), repository=repository.name, licence=""
        )
        card.write_text(text, encoding="utf-8")
        push_folder(folder, repository, record=DATASET_RECORD, public=False, replace=False, message="Build by T2I Foundry")
    return built


def build_dataset(config: BuildConfig) -> Built:
    """Builds the data set, unless it is there already. Raises UserError for an empty selection and for SQL that is wrong."""
    runs = _open_runs(config.captions)
    notes = tuple(note for name, run in runs.items() for note in _open_units(name, run))
    identity = _identity(config, runs)
    if not config.dry_run and is_dataset(config.out):
        return _built_before(config.out, identity)
    with open_workbench(runs) as bench:
        state = select(bench, runs, config)
        funnel = funnel_table(state)
        if not config.dry_run:
            if not num_left(state):
                raise UserError(f"no image is left: {_last_drop(funnel)} dropped the last; loosen the recipe")
            folder = _new_folder(config.out)
            with _writer(folder, config, runs) as writer:
                funnel = _write(writer, state, embed=config.embed)
            record = _record(config, runs, writer) | {
                "identity": identity,
                "structured": _structured(state),
                "edited_captions": num_edited(state),
            }
            return Built(funnel, _publish(folder, record, funnel, histograms(state)), (*notes, *state.notes))
    return Built(funnel, None, (*notes, *state.notes))


def _open_runs(urls: Sequence[str]) -> dict[str, RunFiles]:
    """The runs by the name that tells them apart. Raises UserError if they were not counted or scored in the same way."""
    runs: dict[str, RunFiles] = {}
    locations = [normalise(url) for url in urls]
    for url, location in zip(urls, locations, strict=True):
        if locations.count(location) > 1:
            raise UserError(f"{url} is given twice: name each run once")
        parts = [part for part in location.split("/") if part]
        names = ("/".join(parts[-n:]) for n in range(1, len(parts) + 1))
        name = next((name for name in names if name not in runs), location)
        runs[name] = read_run(url)
        first = next(iter(runs.values()))
        for setting in ("tagger", "t5"):
            if runs[name].settings.get(setting) != first.settings.get(setting):
                raise UserError(
                    f"{url} and {urls[0]} were counted with another {setting}: caption one of them again, or "
                    f"build them separately"
                )
    _check_scores(runs)
    return runs


def _check_scores(runs: dict[str, RunFiles]) -> None:
    """Raises UserError if scores or embeddings of several runs are of different models, and so cannot be compared."""
    for model in ("clip", "aesthetic"):
        settings = {name: run.scores.record.get("settings", {}) for name, run in runs.items() if run.scores}
        used = {name: json.dumps(setting[model]) for name, setting in settings.items() if setting.get(model)}
        if len(set(used.values())) > 1:
            raise UserError(f"{' and '.join(used)} were not scored by the same model ({model}): score them again with one")


def _open_units(name: str, run: RunFiles) -> Iterable[str]:
    planned = read_plan(run.folder, unit_size=run.record.unit_size).num_units
    if len(run.commits) < planned:
        yield f"{name} is not finished: built from the {len(run.commits):,} of {planned:,} units that are committed"


def _identity(config: BuildConfig, runs: dict[str, RunFiles]) -> str:
    """A hash of all that decides what the data set holds."""
    recipe = {name: value for name, value in asdict(config).items() if name not in _NOT_PART_OF_IT}
    state = [[run.record.run_id, [commit.attempt for commit in run.commits]] for run in runs.values()]
    scores = [[commit.attempt for commit in run.scores.commits] if run.scores else [] for run in runs.values()]
    reviews = [list(run.reviews.files) for run in runs.values()]
    parts = [recipe, state, scores, *([reviews] if any(reviews) else [])]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _built_before(url: str, identity: str) -> Built:
    dataset = read_dataset(url)
    if dataset.record["identity"] != identity:
        raise UserError(
            f"{url} holds a data set of another recipe or of another state of the runs: give another folder", setting="out"
        )
    with dataset.folder.open(dataset.paths("funnel")[0]) as file:
        # In this thread: one of pyarrow's that still holds the file would abort the process, which is about to end.
        funnel = pq.ParquetFile(file).read(use_threads=False)
    return Built(funnel, dataset, (f"{url} is built already",))


def _last_drop(funnel: pa.Table) -> str:
    rows = [row for row in funnel.to_pylist() if row["dropped"]]
    return f"the step {rows[-1]['step']} ({rows[-1]['reason']})" if rows else "nothing was captioned; that"


def _new_folder(url: str) -> Folder:
    """The folder for a new data set, without what an interrupted build left. Raises UserError if something else is in it."""
    folder = Folder(url)
    started = folder.exists(_MARK)
    if not started and folder.exists() and folder.filesystem.find(folder.root):
        raise UserError(f"{url} holds other files: give another folder", setting="out")
    folder.write(_MARK, b"A data set is being built here, or was until something stopped it: build again.\n")
    kinds = STORED.keys() - SCORED.keys()
    for name in (*kinds, *(f"{kind}.parquet" for kind in kinds)):
        if folder.exists(name):
            folder.filesystem.rm(folder.path(name), recursive=True)
    return folder


def _writer(folder: Folder, config: BuildConfig, runs: dict[str, RunFiles]) -> DatasetWriter:
    max_tokens = next(iter(runs.values())).record.max_tokens
    return DatasetWriter(folder, splits=config.splits, has_images=config.embed, max_tokens=max_tokens)


def _write(writer: DatasetWriter, state: SelectionState, *, embed: bool) -> pa.Table:
    """Writes all but the counts, which the writer does at its end, and returns the funnel."""
    lost = [DROPPED.empty_table()]
    for samples in sample_batches(state):
        if not embed:
            writer.add(samples)
            continue
        for embedded in embed_images(samples):
            writer.add(embedded.samples)
            lost.append(embedded.dropped)
    writer.write("dropped", chain(state.bench.batches(dropped_sql(state)), lost))
    writer.write("dropped_captions", state.bench.batches(dropped_captions_sql(state)))
    writer.write("groups", state.bench.batches(groups_sql()))
    funnel = funnel_table(state, lost=Counter(reason for table in lost for reason in table["reason"].to_pylist()))
    writer.write("funnel", [funnel])
    return funnel


def _record(config: BuildConfig, runs: dict[str, RunFiles], writer: DatasetWriter) -> dict[str, Any]:
    settings = next(iter(runs.values())).settings
    carried: dict[str, str] = {}
    for run in runs.values():
        merge_types(carried, run.record.carried)
    return {
        "schema_version": DATASET_VERSION,
        "name": config.name or config.out.rstrip("/").rsplit("/", 1)[-1],
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "splits": writer.splits,
        "captions": writer.tallies.to_pylist(),
        "settings": {name: settings[name] for name in ("tagger", "t5") if name in settings},
        "recipe": {name: value for name, value in asdict(config).items() if name not in _NOT_PART_OF_IT},
        "runs": [_run_record(name, run) for name, run in runs.items()],
        "carried": carried,
        "files": writer.records,
    }


def _structured(state: SelectionState) -> list[str]:
    """The prompts whose captions are JSON, as the data set calls them."""
    prompts = [
        state.renamed.get((number, prompt), prompt)
        for number, run in enumerate(state.runs.values())
        for prompt in run.record.structured_prompts
    ]
    return list(dict.fromkeys(prompts))


def _run_record(name: str, run: RunFiles) -> dict[str, Any]:
    settings = run.settings
    return {
        "name": name,
        "url": run.folder.url,
        "run_id": run.record.run_id,
        "units": len(run.commits),
        "images": run.record.images,
        "licence": run.record.licence,
        "model": settings.get("model"),
        "prompts": settings.get("prompts"),
        "scores": run.scores.record if run.scores else None,
    }


def _publish(folder: Folder, record: dict[str, Any], funnel: pa.Table, bins: dict[str, dict[int, int]]) -> DatasetFiles:
    """The card, then dataset.json, which makes the data set exist."""
    folder.write("README.md", dataset_card(DatasetFiles(folder, record), funnel, bins).encode())
    folder.create(DATASET_RECORD, json.dumps(record, indent=1).encode())
    folder.filesystem.rm_file(folder.path(_MARK))
    return read_dataset(folder.url)
