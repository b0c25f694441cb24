"""Runs and data sets in a notebook: the answers of SQL in each library, images, density, status, and builds."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dataset_builder import Answer, build_dataset, measure_density, open_dataset, open_run, preview_dataset, score_images
from dataset_builder.density import DensityConfig
from dataset_builder.density import main as density_command
from dataset_builder.runs.status import read_status
from dataset_builder.sql.dataset_files import open_stored
from foundry.errors import UserError
from foundry.storage.folder import Folder
from foundry.storage.schema import SCHEMA_VERSION
from tests.dataset_builder.small_run import SmallRun, write_run_with_images

SQL = "SELECT key, prompt, num_nouns, mean_logprob, nouns, caption FROM captions ORDER BY key, prompt"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a run, with what a command that resumes it looks for."""
    folder = SmallRun().write(Folder(str(tmp_path_factory.mktemp("small") / "run")))
    record = json.loads(folder.read("run.json"))
    record["settings"] |= {"schema_version": SCHEMA_VERSION, "unit_size": SmallRun.unit_size}
    folder.write("run.json", json.dumps(record).encode())
    return folder.url


@pytest.fixture(scope="module")
def rows(small: str) -> list[dict[str, Any]]:
    """The rows of SQL, by the query command's own way."""
    with open_stored(small) as database:
        return list(database.fetch(SQL).to_pylist())


def test_an_answer_is_the_same_in_every_library(small: str, rows: list[dict[str, Any]]) -> None:
    answer = open_run(small).sql(SQL)
    assert len(answer) == len(rows) and answer.columns == list(rows[0])
    assert answer.rows() == answer.arrow().to_pylist() == rows
    frame = answer.df()
    assert list(frame.columns) == answer.columns
    assert [{**row, "nouns": list(row["nouns"])} for row in frame.to_dict("records")] == rows
    dataset = answer.dataset()
    assert dataset.column_names == answer.columns and dataset.to_list() == rows


def test_an_answer_is_the_same_in_polars(small: str, rows: list[dict[str, Any]]) -> None:
    pytest.importorskip("polars")
    assert open_run(small).sql(SQL).pl().to_dicts() == rows


@pytest.mark.parametrize(("method", "library"), [("df", "pandas"), ("pl", "polars"), ("dataset", "datasets")])
def test_a_library_that_is_missing_is_one_line(small: str, method: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = open_run(small).sql("SELECT key FROM captions")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=f"this needs {library}, which is not installed: pip install "):
        getattr(answer, method)()
    assert len(answer.arrow()) == len(answer)


def test_types_that_a_library_does_not_have_are_one_line() -> None:
    table = pa.table({"counts": pa.array([[("broken", 1)]], pa.map_(pa.string(), pa.int64()))})
    assert Answer(table).rows() == [{"counts": {"broken": 1}}]
    odd = pa.table({"odd": pa.array([(1, 2, 3)], pa.month_day_nano_interval())})
    with pytest.raises(UserError, match=r"datasets cannot hold this answer .*leave the column out"):
        Answer(odd).dataset()


def test_a_notebook_shows_the_first_rows_and_says_how_many_there_are(small: str) -> None:
    run = open_run(small)
    answer = run.sql("SELECT '<b>' || range AS text, range / 3 AS share FROM range(30)")
    shown = answer._repr_html_()
    assert "<th>text</th><th>share</th>" in shown and "<td>&lt;b&gt;0</td><td>0</td>" in shown
    assert shown.count("<tr>") == 21 and "30 rows, the first 20 shown" in shown
    assert repr(answer).splitlines()[0].split() == ["text", "share"] and repr(answer).splitlines()[-1].startswith("30 rows")
    hint = run.sql("FROM scores").notes
    assert len(hint) == 1 and "scores is empty" in hint[0] and "python -m dataset_builder.score" in hint[0]


def test_nothing_is_printed(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    with open_run(small) as run:
        run.sql(SQL), run.status(), run.density(), run.views, run.columns("captions")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_a_run_says_how_far_it_is_and_what_can_be_asked(small: str) -> None:
    run = open_run(Path(small))
    status, expected = run.status(), read_status(Folder(small))
    assert (status.planned, status.captioned, status.rejected) == (expected.planned, expected.captioned, 1) == (8, 5, 1)
    assert run.views["captions"] == "one row per image and prompt" and run.settings["t5"]["max_tokens"] == 6
    described = {row["name"]: row for row in run.columns("captions").rows()}
    assert described["num_nouns"]["meaning"] == "number of nouns of the caption, repeats included"
    assert repr(run) == f"Run({small!r})"


def test_wrong_questions_are_one_line(small: str, tmp_path: Path) -> None:
    run = open_run(small)
    for sql, message in [
        ("SELECT captoin FROM captions", "there is no column captoin: did you mean caption"),
        ("FROM caption", "there is no table caption: did you mean captions"),
        ("DROP TABLE captions", "access is read-only"),
    ]:
        with pytest.raises(UserError, match=message):
            run.sql(sql)
    with pytest.raises(UserError, match="is not a captioning run: it has no run.json"):
        open_run(tmp_path)
    with pytest.raises(UserError, match="is not a data set: it has no dataset.json"):
        open_dataset(tmp_path)
    (tmp_path / "afile").touch()
    with pytest.raises(UserError, match="afile is not a captioning run: it has no run.json"):
        open_run(tmp_path / "afile")
    with pytest.raises(UserError, match="afile is not a data set: it has no dataset.json"):
        open_dataset(tmp_path / "afile")
    with pytest.raises(UserError, match=r"open_run\(\) has no option trainig: did you mean training"):
        open_run(small, trainig="runs/a")  # type: ignore[call-arg]
    with pytest.raises(UserError, match="is not the folder of a training"):
        open_run(small, training=tmp_path / "nothing")


def test_density_is_that_of_the_command(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    density = open_run(small).density()
    assert density_command(DensityConfig(sources=(small,))) == 0
    assert capsys.readouterr().out == f"{density}\n"
    by_sql = open_run(small).sql("FROM density()").df().set_index(["prompt", "counted"])
    found = density.df().set_index(["prompt", "counted"])
    for name in ("num_captions", "valid_nouns", "distinct_nouns", "total_nouns"):
        assert found[name].to_dict() == by_sql[name].to_dict()
    assert found["ratio"].round(4).to_dict() == by_sql["ratio"].to_dict()
    assert measure_density(sources=[small]).rows() == density.rows()  # type: ignore[arg-type]
    with pytest.raises(UserError, match="there is no column captoin"):
        open_run(small).density("captoin")


def test_a_curve_ends_at_the_density_of_all_captions(small: str) -> None:
    density = open_run(small).density()
    whole = {row["name"]: row for row in density.rows() if row["counted"] == "written"}
    curve = density.curve(points=4).df()
    for name, part in curve.groupby("name"):
        assert part["num_captions"].is_monotonic_increasing and part["distinct_nouns"].is_monotonic_increasing
        last = part.iloc[-1]
        assert (last["num_captions"], last["distinct_nouns"]) == (whole[name]["num_captions"], whole[name]["distinct_nouns"])
    assert set(curve["name"]) == set(whole)
    assert density.paper().df()["ratio"].tolist() == [0.085, 0.133, 0.186, 0.261]


def test_images_come_in_the_order_of_their_keys_or_say_why_not(tmp_path: Path) -> None:
    run = open_run(write_run_with_images(tmp_path))
    first = run.images(["img_0"])[0]
    assert np.array_equal(np.asarray(first), np.asarray(Image.open(tmp_path / "img_0.png"))) and first.mode == "RGB"
    assert [image.size for image in run.images(["img_0", "img_0"])] == [(64, 48)] * 2 and run.images([]) == []
    for key, message in [
        ("img_9", "has no image 'img_9': give keys of its view images"),
        ("img_1", "img_1: .*leave its key out"),
        ("img_2", "img_2: its bytes have changed since it was captioned"),
    ]:
        with pytest.raises(UserError, match=message):
            run.images([key])


def test_a_data_set_is_previewed_built_opened_and_resumed(small: str, tmp_path: Path) -> None:
    run, recipe = open_run(small), {"where": "prompt = 'dense'", "splits": {"train": 1.0}}
    funnel = preview_dataset(captions=run, **recipe)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    dataset = build_dataset(captions=run, out=tmp_path / "data", **recipe)  # type: ignore[arg-type]
    assert dataset.splits == {"train": 5} and dataset.funnel().rows() == funnel.rows()
    assert dataset.sql("SELECT count(*) AS n FROM samples").rows() == [{"n": 5}]
    assert dataset.density().df()["num_captions"].tolist() == [5] * 4
    assert open_dataset(dataset).sql("SELECT DISTINCT prompt FROM captions").rows() == [{"prompt": "dense"}]
    again = build_dataset(captions=[small], out=str(tmp_path / "data"), **recipe)  # type: ignore[arg-type]
    assert again.sql("FROM samples ORDER BY key").rows() == dataset.sql("FROM samples ORDER BY key").rows()


def test_builds_that_do_not_fit_are_one_line(small: str, tmp_path: Path) -> None:
    for options, message in [
        ({"where": "num_nuons > 3"}, "there is no column num_nuons: did you mean num_nouns"),
        ({"where": "false"}, "no image is left: the step where"),
        ({"dry_run": True}, "a dry run builds no data set: call preview_dataset"),
        ({"min_side": 3}, "unknown option min_side; did you mean --min_side_px?"),
    ]:
        with pytest.raises(UserError, match=message):
            build_dataset(captions=[small], out=str(tmp_path / "data"), **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the aesthetic predictor reads CLIP embeddings"):
        score_images(source=small, clip="none", aesthetic="predictor.safetensors")
