"""run.json of any version opens, is written back whole, and is not mistaken for something else."""

import json
from pathlib import Path
from typing import Any

import pytest

from foundry.errors import UserError
from foundry.storage.folder import Folder
from foundry.storage.run_record import RunRecord, as_stored, record_carried, run_id
from foundry.storage.schema import SCHEMA_VERSION

SETTINGS: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "unit_size": 8, "prompts": {"name": "paper"}}
# As captioner.run wrote it before this file existed, with a member that no version knows.
WRITTEN = {
    "run_id": "0123456789abcdef",
    "settings": SETTINGS,
    "images": ["/data/photos"],
    "licence": "CC0",
    "carried": {"score": "DOUBLE"},
    "argv": ["captioner/run.py"],
    "config": {"limit": None},
    "created_at": "2026-01-01T00:00:00+00:00",
    "note": "by hand",
}


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "run"))


def test_a_file_is_written_back_as_it_was(run: Folder) -> None:
    data = json.dumps(WRITTEN, indent=1).encode()
    run.write("run.json", data)
    record = RunRecord.read(run)
    assert record is not None
    record.check(run)
    record.write(run)
    assert run.read("run.json") == data
    assert record_carried(run, record, {"score": "DOUBLE"}) is record
    assert run.read("run.json") == data, "nothing new is nothing to write"
    assert record_carried(run, record, {"width": "BIGINT"}) == RunRecord.read(run)
    assert json.loads(run.read("run.json")) == WRITTEN | {"carried": {"score": "DOUBLE", "width": "BIGINT"}}
    record_carried(run, record, {"height": "BIGINT"})
    carried = {"score": "DOUBLE", "width": "BIGINT", "height": "BIGINT"}
    assert json.loads(run.read("run.json")) == WRITTEN | {"carried": carried}, "what was added meanwhile is kept"


def test_a_new_record_has_the_members_of_old_ones_in_their_order(run: Folder) -> None:
    record = RunRecord.new(settings=SETTINGS, images=["/data/photos"], licence="CC0", config={"limit": None})
    assert record.create(run) and not record.create(run)
    assert list(json.loads(run.read("run.json"))) == [name for name in WRITTEN if name != "note"]
    assert RunRecord.read(run) == record
    assert record.unit_size == 8
    written = RunRecord(settings={"t5": {"max_tokens": 120}, "prompts": {"prompts": [{"name": "a"}, {"name": "b"}]}})
    assert (written.max_tokens, written.prompt_names) == (120, ["a", "b"])
    other = record.with_settings(SETTINGS | {"unit_size": 4})
    assert other.run_id != record.run_id == run_id(SETTINGS)


def test_a_run_keeps_its_id() -> None:
    """From the version before: what it named a run of these settings."""
    settings = {"b": ("x", {"c": (1, 2)}), "a": 0.5}
    assert run_id(settings) == run_id(as_stored(settings)) == "db8347dac9245fb8"
    assert as_stored(settings) == {"b": ["x", {"c": [1, 2]}], "a": 0.5}


def test_what_is_missing_is_empty_and_cannot_be_resumed(run: Folder) -> None:
    assert RunRecord.read(run) is None
    run.write("run.json", b'{"run_id": "x"}')
    record = RunRecord.read(run)
    assert record == RunRecord(run_id="x")
    assert (record.unit_size, record.max_tokens, record.prompt_names) == (0, 0, [])
    with pytest.raises(UserError, match=r"run\.json is damaged, or belongs to something else"):
        record.check(run)
    with pytest.raises(UserError, match="has schema version 0"):
        RunRecord(run_id="x", settings=SETTINGS | {"schema_version": 0}).check(run)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"settings": []}', '{"run_id": 1}'])
def test_what_is_not_a_record_is_one_line(run: Folder, content: str) -> None:
    run.write("run.json", content.encode())
    with pytest.raises(UserError, match="cannot be read"):
        RunRecord.read(run)
