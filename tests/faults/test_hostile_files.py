"""Hostile files: containers, lists, settings and weights are opened or refused in one line, and never executed."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captioner.cleaning import clean
from captioner.structured.answers import read_answer
from foundry.errors import UserError
from foundry.images.lists import index_list
from foundry.images.metadata import metadata_json, parse_sidecars
from foundry.storage.file_kinds import SIDECAR_SUFFIXES
from foundry.units.rejection import ImageError
from tests.faults.conftest import Tally
from tests.faults.files import CRAFTED, WHOLE
from tests.faults.mutation import mutants

ROOT = Path(__file__).resolve().parent.parent.parent
MAX_SECONDS = 20.0
MAX_MB = 1_600


def opened(folder: Path) -> dict[str, Any]:
    """What tests.faults.open_all says of the folder; an error that names the file where the process does not end well."""
    command = [sys.executable, "-m", "tests.faults.open_all", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, (done.returncode, done.stdout.splitlines()[-1:], done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert not found["failed"], json.dumps(found["failed"], indent=1).replace("\\n", "\n")
    assert not list(folder.rglob("executed")), "a file was executed"
    assert found["peak_mb"] < MAX_MB and found["seconds"] < MAX_SECONDS, found
    return found


@pytest.mark.slow
@pytest.mark.faults
def test_crafted_files_are_refused_in_one_line(tmp_path: Path, tally: Tally) -> None:
    for name, make in CRAFTED.items():
        (tmp_path / name).write_bytes(make())
    found = opened(tmp_path)
    assert sum(found["outcomes"].values()) == len(CRAFTED)
    tally("crafted files", len(CRAFTED))


@pytest.mark.slow
@pytest.mark.parametrize("count", [5, pytest.param(300, marks=pytest.mark.faults)])
def test_damaged_files_are_opened_or_refused_in_one_line(
    tmp_path: Path, rng: random.Random, tally: Tally, *, count: int
) -> None:
    for suffix, originals in WHOLE.items():
        for number, data in enumerate(mutants(originals, rng, count)):
            (tmp_path / f"{number:04d}.{suffix}").write_bytes(data)
    found = opened(tmp_path)
    assert sum(found["outcomes"].values()) == count * len(WHOLE)
    tally("files", count * len(WHOLE))


SCHEMA = '{"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}'
ANYTHING = st.text(st.characters(exclude_categories=()), max_size=60)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANYTHING,
    lambda part: st.lists(part) | st.dictionaries(ANYTHING, part),
    max_leaves=8,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from(SIDECAR_SUFFIXES),
    content=st.binary(max_size=80) | JSON.map(lambda value: json.dumps(value).encode()),
)
def test_a_sidecar_is_read_or_rejects_its_image(tally: Tally, suffix: str, content: bytes) -> None:
    try:
        found = parse_sidecars([(suffix, content, "a")])
        (found.carried.alt_text or "").encode()
        metadata_json(found.carried.all_metadata)
        reason = "bad_sidecar"
    except ImageError as error:
        reason = error.reason
    assert reason == "bad_sidecar"
    tally("parsed", 1)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from((".jsonl", ".csv", ".tsv")),
    content=st.binary(max_size=120) | ANYTHING.map(lambda text: text.encode("utf-8", "replace")),
)
def test_a_list_is_read_or_refused(tally: Tally, tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / f"list{suffix}"
    path.write_bytes(content)
    try:
        rows = list(index_list(str(path), str(path.parent), path_column="path", search_sidecars=False))
        "".join(f"{row.uri}{row.alt_text}{row.metadata}" for row in rows).encode()
        said = "read"
    except UserError as error:
        said = str(error)
    assert said and "\n" not in said
    tally("parsed", 1)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=ANYTHING, value=JSON)
def test_captions_are_cleaned_and_read_whatever_a_model_writes(tally: Tally, text: str, value: object) -> None:
    for answer in (text, json.dumps(value), f"```json\n{json.dumps(value)}\n```"):
        assert "\n" not in clean(answer, finish_reason="stop").caption
        read = read_answer(answer, SCHEMA)
        assert bool(read.fault) != bool(read.caption) and "\n" not in read.fault
        assert read.fault or isinstance(json.loads(read.caption)["a"], str)
    tally("parsed", 3)
