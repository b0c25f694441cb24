"""Columns of any name and of mixed types go through every command, with their values."""

import json
from pathlib import Path
from typing import Any

import pytest

from dataset_builder.build import main as build
from dataset_builder.convert import ConvertConfig
from dataset_builder.convert import main as convert
from dataset_builder.dataset.recipe import BuildConfig
from dataset_builder.density import DensityConfig
from dataset_builder.density import main as density
from dataset_builder.query import QueryConfig
from dataset_builder.query import main as query
from dataset_builder.report import ReportConfig
from dataset_builder.report import main as report
from dataset_builder.runs.carried_types import record_types
from dataset_builder.runs.plan import read_plan
from dataset_builder.sql.dataset_files import open_stored, read_dataset
from dataset_builder.sql.run_files import read_run
from foundry.storage.folder import Folder
from tests.dataset_builder.small_run import MINI_T5
from tests.foundry.images.containers import jpeg, parquet, tar_bytes, write
from tests.foundry.units.plain_loop import run_plainly

NAMES = (
    *("", " ", '"', "'", "select", "a.b/c~d", "*", "new\nline", "nul\0", "x" * 3000, "é", "É", "%s", "{}", "<b>"),
    *("run", "unit", "Run", "key", "KEY", "uri", "metadata", "width", "split", "image", "captions", "source_width"),
    *("status", "Status", "source_status", "prompt", "nouns", "num_words", "opener", "clip_mean", "unnamed", "left_out"),
)


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foundry.units.run.run_job", run_plainly)


def _import(tmp_path: Path, given: Path) -> str:
    """The run of a list of images and texts."""
    out = str(tmp_path / "run")
    assert convert(ConvertConfig(input=str(given), out=out, source="laion", target="run", t5=MINI_T5)) == 0
    return out


def _images(url: str) -> list[dict[str, Any]]:
    with open_stored(url) as stored:
        found: list[dict[str, Any]] = stored.fetch("SELECT * FROM images ORDER BY key").to_pylist()
    return found


def test_a_column_of_any_name_survives_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        write(tmp_path / f"{number}.jpg", jpeg(number))
    rows = [
        {"path": f"{n}.jpg", "text": "An owl and a house.", **{name: f"{place} of {n}" for place, name in enumerate(NAMES)}}
        for n in range(2)
    ]
    run = _import(tmp_path, write(tmp_path / "list.jsonl", "\n".join(map(json.dumps, rows))))
    values = {f"{place} of 0" for place in range(len(NAMES))}
    data = str(tmp_path / "data")
    assert build(BuildConfig(captions=(run,), out=data, where="source_status IS NOT NULL AND status = 'ok'")) == 0
    for url in (run, data):
        first, _ = _images(url)
        assert values <= {str(value) for value in first.values()}
        assert first["unnamed"] == "0 of 0"
        assert json.loads(first["metadata"])["Status"] == f"{NAMES.index('Status')} of 0"
        for form in ("table", "csv", "json"):
            assert query(QueryConfig(run=url, sql="SELECT * FROM images ORDER BY key", format=form)) == 0
            shown = capsys.readouterr().out
            assert form == "table" or all(value in shown for value in values)
        assert report(ReportConfig(source=url, out=str(tmp_path / f"{Path(url).name}.html"))) == 0
        assert density(DensityConfig(sources=(url,), column=("unnamed",), t5=MINI_T5)) == 0
    shards = str(tmp_path / "shards")
    assert convert(ConvertConfig(input=data, out=shards, source="dataset", target="webdataset", num_workers=1)) == 0
    again = str(tmp_path / "again")
    assert convert(ConvertConfig(input=shards, out=again, source="webdataset", target="run", t5=MINI_T5)) == 0
    assert values <= {str(value) for value in _images(again)[0].values()}


def test_what_pandas_writes_first_has_a_name_in_sql(tmp_path: Path) -> None:
    write(tmp_path / "im0.jpg", jpeg(0))
    run = _import(tmp_path, write(tmp_path / "list.csv", ",file_name,text\n7,im0.jpg,red owl\n"))
    assert _images(run)[0]["unnamed"] == 7


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_a_column_that_is_text_in_one_file_and_numbers_in_another_keeps_all_values(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    mixed: list[dict[str, Any]] = [
        {"id": "abc123", "score": "high", "n": 1, "marked": True},
        {"id": 17, "score": 1.5, "n": 2.5, "marked": 3},
    ]
    for number, (name, columns) in enumerate(zip(names, mixed, strict=True)):
        held = {column: [value] for column, value in columns.items()}
        parquet(tmp_path / "in" / f"{name}.parquet", {"image": [jpeg(number)], "text": ["An owl."], **held})
    run = _import(tmp_path, tmp_path / "in")
    data = str(tmp_path / "data")
    assert build(BuildConfig(captions=(run,), out=data)) == 0
    for url in (run, data):
        found = {row["id"]: (row["score"], row["n"], row["marked"]) for row in _images(url)}
        assert found == {"abc123": ("high", 1.0, "true"), "17": ("1.5", 2.5, "3")}
    assert read_dataset(data).record["carried"] == {"id": "VARCHAR", "score": "VARCHAR", "n": "DOUBLE", "marked": "VARCHAR"}


@pytest.mark.parametrize("is_tar", [False, True])
def test_json_files_after_the_first_ones_keep_their_values(tmp_path: Path, *, is_tar: bool) -> None:
    facts: list[dict[str, Any]] = [{"id": n, "score": 0.5, "n": n, "marked": True, "same": n} for n in range(9)]
    facts.append({"id": "x9", "score": "high", "n": 1.5, "marked": "maybe", "same": 9, "late": "new", "a/b": 1})
    members = [
        (f"{n}{suffix}", data)
        for n, row in enumerate(facts)
        for suffix, data in ((".jpg", jpeg(n)), (".json", json.dumps(row)))
    ]
    if is_tar:
        write(
            tmp_path / "in.tar", tar_bytes([(name, data.encode() if isinstance(data, str) else data) for name, data in members])
        )
    for name, data in [] if is_tar else members:
        write(tmp_path / "in" / name, data)
    given, source = (tmp_path / "in.tar", "webdataset") if is_tar else (tmp_path / "in", "image-txt")
    out = str(tmp_path / "run")
    config = ConvertConfig(input=str(given), out=out, source=source, target="run", t5=MINI_T5)  # type: ignore[arg-type]
    assert convert(config) == 0
    last = _images(out)[-1]
    assert {name: last[name] for name in ("id", "score", "n", "marked", "same", "late", "a/b")} == {
        "id": "x9",
        "score": "high",
        "n": "1.5",
        "marked": "maybe",
        "same": 9,
        "late": "new",
        "a/b": "1",
    }
    assert [row["same"] for row in _images(out)] == list(range(10))
    assert record_types(read_run(out), read_plan(Folder(out), unit_size=1)) == {}, "once is enough"
