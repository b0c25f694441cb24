"""Start of a captioning run: its run.json is created, checked, or replaced while nothing is committed, and each start leaves a
record of what it ran on in starts/<time>.json. Nothing in starts/ enters the run_id: a run may resume with other library
versions or on other machines."""

import json
import platform
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from captioner.config import CaptionConfig
from dataset_builder.runs.plan import discard_plan
from foundry.errors import UserError
from foundry.reporting.lines import say
from foundry.storage.folder import Folder, store_errors
from foundry.storage.run_record import RunRecord
from foundry.units.commits import Commit, committed_units

_LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers", "ray", "spacy", "pyarrow", "pillow", "numpy")


def check_folder(run: Folder) -> RunRecord | None:
    """The record of the run in this folder; None for a new folder. Raises UserError for a folder that holds something else.

    It is called before anything costly is done.
    """
    with store_errors(run):
        record = read_record(run)
        if record is None and run.exists() and run.names():
            raise UserError(f"{run.url} is not empty and holds no captioning run: give another folder", setting="out")
    return record


def read_record(run: Folder) -> RunRecord | None:
    """The record of a run that can be resumed; None if there is none. Raises UserError for any other run.json."""
    record = RunRecord.read(run)
    if record is not None:
        record.check(run)
    return record


def committed_settings(run: Folder, record: RunRecord | None) -> dict[str, Any] | None:
    """The settings of what the run has committed; None if that is nothing."""
    return record.settings if record is not None and _has_commits(run) else None


def begin(
    config: CaptionConfig,
    run: Folder,
    settings: dict[str, Any],
    *,
    before: RunRecord | None,
    source: RunRecord | None = None,
) -> RunRecord:
    """Creates run.json, or checks that `before`, what it says, is the same; returns the record of the run.

    `source` is the record of the run that captions are taken from: its images and, unless another is given, its licence.

    Other settings replace it as long as nothing is committed: then it is read again, and likewise where another process
    created it meanwhile. A plan stays where the images and the size of a unit do. Raises UserError if something is
    committed.
    """
    images = config.images if source is None else source.images
    licence = config.licence or (source.licence if source else "")
    record = RunRecord.new(settings=settings, images=images, licence=licence, config=asdict(config))
    if before is not None and not _changes(before, record):
        return before
    with store_errors(run):
        return record if record.create(run) else _begin_again(run, record)


def settle_dtype(run: Folder, record: RunRecord, settings: dict[str, Any]) -> RunRecord:
    """Records the dtype that `auto` came to, before the first unit is worked on; returns the new record.

    run.json is read again before it is written, since another process may have changed it after `record` was read.
    """
    if record.settings == settings:
        return record
    settled = (read_record(run) or record).with_settings(settings)
    with store_errors(run):
        settled.write(run)
    return settled


def check_commits(run: Folder, commits: Sequence[Commit], *, run_id: str) -> None:
    """Raises UserError if another run, started at the same time, has committed into this folder."""
    strange = [commit for commit in commits if commit.run_id != run_id]
    if strange:
        raise UserError(
            f"{run.url} holds {len(strange)} units of another run ({strange[0].run_id}) and units of {run_id}: "
            "they were started at the same time; give another folder",
            setting="out",
        )


def record_start(
    run: Folder, config: CaptionConfig, *, dtype: str, cluster: str, on_gpus: bool, listed: Mapping[str, Any]
) -> None:
    """Writes what is known before the first unit. `dtype` and `on_gpus` are what `auto` came to, `listed` what a server says
    of its model. Raises UserError."""
    now = datetime.now(UTC)
    record = {
        "started_at": now.isoformat(timespec="seconds"),
        "argv": sys.argv,
        "config": asdict(config),
        "dtype": dtype,
        "device": "GPU" if on_gpus else "CPU",
        "cluster": cluster,
        **({"listed": dict(listed)} if listed else {}),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
    }
    with store_errors(run):
        run.create(f"starts/{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}.json", json.dumps(record, indent=1).encode())


def _begin_again(run: Folder, record: RunRecord) -> RunRecord:
    """Replaces the run.json that is there now, unless it says the same."""
    before = read_record(run)
    assert before is not None
    if not _changes(before, record):
        return before
    different, missing = _different(before.settings, record.settings), _missing(before, record)
    if _has_commits(run):
        _refuse(run, different, missing)
    if missing or not keeps_plan(before.settings, record.settings):
        discard_plan(run)
    begun = replace(record, carried={} if missing else before.carried)
    begun.write(run)
    others = [*map(_asked_by, different), *["images"] * bool(missing)]
    say(f"nothing was committed in {run.url} yet: started again with other {', '.join(others)}")
    return begun


def keeps_plan(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a plan that was made under the settings `before` holds under those of `now`, if the sources are the same."""
    return all(before.get(name) == now.get(name) for name in ("unit_size", "captions_from"))


def _asked_by(name: str) -> str:
    """The setting of the command that a setting of run.json comes from."""
    return {"captions_from.only": "only", "captions_from.run_id": "captions_from"}.get(name, name)


def _changes(before: RunRecord, record: RunRecord) -> bool:
    """Whether the two are different runs; one that gets more sources is the same."""
    return bool(_different(before.settings, record.settings) or _missing(before, record))


def _missing(before: RunRecord, record: RunRecord) -> list[str]:
    """The sources that the run was started on and that are not named now."""
    return [source for source in before.images if source not in record.images]


def _refuse(run: Folder, different: Sequence[str], missing: Sequence[str]) -> None:
    """A run may get more sources, never others: what was planned stays planned."""
    if different:
        is_another_model = any(name == "model.revision" or name.startswith("model.listed.") for name in different)
        advice = "give the model as it was, and" if is_another_model else "give"
        raise UserError(
            f"{run.url} holds a run with another {', '.join(map(_asked_by, different))}: {advice} the settings in its run.json"
            ", or another folder",
            setting="out",
        )
    raise UserError(f"{run.url} holds a run over {', '.join(missing)}: name that too, or give another folder", setting="out")


def _different(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Dotted names of the settings that are not the same; `auto` is any dtype."""
    here, there = _flat(now), _flat(before)
    if here["generation.dtype"] == "auto" and "generation.dtype" in there:
        here["generation.dtype"] = there["generation.dtype"]
    return [name for name in here | there if name not in here or name not in there or here[name] != there[name]]


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _has_commits(run: Folder) -> bool:
    with store_errors(run):
        return bool(committed_units(run))
