"""Record of a captioning run, run.json: the settings that its captions depend on, and where its images come from.

This file alone reads and writes run.json. What became of the images is in the plans and the commits.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Self

from foundry.errors import UserError
from foundry.storage.folder import Folder, store_errors

RUN_RECORD = "run.json"
_ADVICE = "give another folder, or that of a captioning run"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The content of run.json. What a file lacks is empty: a reader needs some of it, never all."""

    run_id: str = ""
    """Hash of the settings."""
    settings: dict[str, Any] = field(default_factory=dict)
    """All that a caption of the run depends on, as JSON holds it: with lists, without tuples."""
    images: list[str] = field(default_factory=list)
    """The sources that the run was started on; absolute paths and URLs."""
    licence: str = ""
    """Licence and terms of the images."""
    carried: dict[str, str] = field(default_factory=dict)
    """Columns that the sources carry, with their SQL types."""
    origin: dict[str, Any] = field(default_factory=dict)
    """The other members, such as the command and the time; for people, since nothing reads them."""

    @property
    def unit_size(self) -> int:
        """Images of a unit; 0 if the file does not say."""
        return int(self.settings.get("unit_size", 0))

    @property
    def prompt_names(self) -> list[str]:
        """The prompts of captions, in their order; that of a structured one is followed by that of its rendering to prose."""
        return [prompt[name] for prompt in self._prompts for name in ("name", "prose") if name in prompt]

    @property
    def structured_prompts(self) -> list[str]:
        """The prompts whose captions are JSON, in their order."""
        return [prompt["name"] for prompt in self._prompts if "schema" in prompt]

    @property
    def _prompts(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = self.settings.get("prompts", {}).get("prompts", [])
        return found

    @property
    def max_tokens(self) -> int:
        """Tokens of a caption that the text encoder reads; 0 if the file does not say."""
        return int(self.settings.get("t5", {}).get("max_tokens", 0))

    @classmethod
    def new(
        cls, *, settings: dict[str, Any], images: Sequence[str], licence: str, config: dict[str, Any] | None = None
    ) -> Self:
        """The record of a run that this command begins now."""
        given = {} if config is None else {"config": config}
        created_at = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(
            run_id=run_id(settings),
            settings=settings,
            images=list(images),
            licence=licence,
            origin={"argv": sys.argv, **given, "created_at": created_at},
        )

    @classmethod
    def read(cls, run: Folder) -> Self | None:
        """The record of the run in this folder; None if there is none. Raises UserError if it is damaged."""
        with store_errors(run):
            try:
                data = run.read(RUN_RECORD)
            except (FileNotFoundError, NotADirectoryError):
                return None
        try:
            found = json.loads(data)
        except ValueError:
            found = None
        if not isinstance(found, dict) or any(not isinstance(found.get(name, kind()), kind) for name, kind in _TYPES.items()):
            raise _damaged(run, num_bytes=len(data))
        known = {name: found.pop(name) for name in _TYPES if name in found}
        return cls(**known, origin=found)

    def check(self, run: Folder) -> None:
        """Raises UserError if a command cannot resume the run: the record is not whole, or of another schema version."""
        from foundry.storage.schema import SCHEMA_VERSION

        version, unit_size = self.settings.get("schema_version"), self.settings.get("unit_size")
        if not self.run_id or version is None or not isinstance(unit_size, int):
            raise _damaged(run, num_bytes=len(self._data()))
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{run.url}/{RUN_RECORD} has schema version {version}, this program writes {SCHEMA_VERSION}: {_ADVICE}"
            )

    def with_settings(self, settings: dict[str, Any]) -> Self:
        """The same run with other settings, and the run_id that belongs to them."""
        return replace(self, settings=settings, run_id=run_id(settings))

    def create(self, run: Folder) -> bool:
        """Writes run.json unless there is one; returns whether it was written."""
        return run.create(RUN_RECORD, self._data())

    def write(self, run: Folder) -> None:
        """Writes run.json in place of the one that is there."""
        run.write(RUN_RECORD, self._data())

    def _data(self) -> bytes:
        known = {name: getattr(self, name) for name in _TYPES}
        return json.dumps(known | self.origin, indent=1).encode()


_TYPES: dict[str, type] = {"run_id": str, "settings": dict, "images": list, "licence": str, "carried": dict}


def is_run(url: str) -> bool:
    """Whether a captioning run is at `url`."""
    return Folder(url).exists(RUN_RECORD)


def run_id(settings: Mapping[str, Any]) -> str:
    """A short hash of the settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def as_stored(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from run.json: with lists in place of tuples, so that the two can be compared."""
    stored: dict[str, Any] = json.loads(json.dumps(settings))
    return stored


def record_carried(run: Folder, record: RunRecord, carried: Mapping[str, str]) -> RunRecord:
    """Adds columns that sources carry (name → SQL type) to run.json, where readers look for them; returns the new record.

    run.json is read again before it is written, since another process may have changed it after `record` was read.
    """
    if carried.items() <= record.carried.items():
        return record
    with store_errors(run):
        newest = RunRecord.read(run) or record
        changed = replace(newest, carried={**newest.carried, **carried})
        changed.write(run)
    return changed


def _damaged(run: Folder, *, num_bytes: int) -> UserError:
    return UserError(
        f"{run.url}/{RUN_RECORD} is damaged, or belongs to something else, and cannot be read ({num_bytes} bytes): {_ADVICE}"
    )
