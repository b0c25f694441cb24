"""A run on the images of another run: with its captions in the prompts, or on what a query names, merged with the first."""

import json
from pathlib import Path
from typing import Any

import pytest

from captioner.config import CaptionConfig
from captioner.run import main
from captioner.runs.job import CaptionJob
from dataset_builder.dataset.recipe import BuildConfig
from dataset_builder.runs.status import read_status
from dataset_builder.sql.run_files import open_run
from foundry.command_line import run_command
from foundry.storage.folder import Folder
from foundry.storage.run_record import RunRecord
from tests.captioner.conftest import run_arguments, save_pictures
from tests.dataset_builder.dataset.built import ask, built
from tests.foundry.units.plain_loop import run_plainly

NUM_IMAGES = 10
REJECTED = "picture-0-0003"


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The questions that were asked about each image, by its key."""
    monkeypatch.setattr("foundry.units.run.run_job", run_plainly)
    found: dict[str, list[str]] = {}
    process = CaptionJob.process

    def remember(self: CaptionJob, engine: Any, payload: Any, *, one_by_one: bool) -> Any:
        for number, key in enumerate(payload.keys):
            found[key] = [questions[number] for questions in payload.prompts.values()]
        return process(self, engine, payload, one_by_one=one_by_one)

    monkeypatch.setattr(CaptionJob, "process", remember)
    return found


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory, tiny_llava: Path) -> Path:
    """A run of three prompts over ten images, of which one is rejected."""
    folder = tmp_path_factory.mktemp("ladder")
    images = save_pictures(folder / "images", count=NUM_IMAGES)
    (images / f"{REJECTED}.jpg").write_bytes(b"no image")
    (images / "picture-0-0001.json").write_text(json.dumps({"tags": "owl, sky"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("foundry.units.run.run_job", run_plainly)
        arguments = run_arguments(images, folder / "run", tiny_llava, "--prompts", "ladder", "--licence", "CC0", *FLOAT)
        code = run_command(CaptionConfig, main, prog="python -m captioner.run", example="", argv=arguments)
    assert code == 0
    return folder / "run"


FLOAT = ("--generation.dtype", "float32")


def caption(source: Path, out: Path, model: Path, *more: str) -> int:
    arguments = run_arguments("", out, model, *FLOAT, "--captions_from", str(source), *more)[2:]
    return run_command(CaptionConfig, main, prog="python -m captioner.run", example="", argv=arguments)


def rows(run: Path, sql: str) -> list[dict[str, Any]]:
    with open_run(str(run)) as database:
        found: list[dict[str, Any]] = database.fetch(sql).to_pylist()
    return found


def test_the_captions_of_a_run_are_merged_into_one(
    ladder: Path, tmp_path: Path, tiny_llava: Path, asked: dict[str, list[str]]
) -> None:
    assert caption(ladder, tmp_path / "run", tiny_llava, "--prompts", "merge", "--unit_size", "4") == 0
    said = rows(ladder, "SELECT key, prompt, caption FROM captions")
    assert len(asked) == NUM_IMAGES - 1 and REJECTED not in asked
    for row in said:
        ((question,),) = [asked[row["key"]]]
        assert f'"{row["caption"]}"' in question or not row["caption"]
    record = RunRecord.read(Folder(str(tmp_path / "run")))
    source = RunRecord.read(Folder(str(ladder)))
    assert record is not None and source is not None
    assert record.settings["captions_from"] == {"run_id": source.run_id, "only": "SELECT DISTINCT key FROM captions"}
    assert (record.images, record.licence) == (source.images, "CC0")
    assert rows(tmp_path / "run", "SELECT tags FROM images WHERE key = 'picture-0-0001'") == [{"tags": "owl, sky"}]


def test_what_has_no_caption_to_ask_about_is_rejected_or_gets_the_fallback(
    *, ladder: Path, tmp_path: Path, tiny_llava: Path, asked: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    everything = ("--only", "SELECT key FROM images UNION SELECT key FROM rejected")
    picture = save_pictures(tmp_path / "other", count=NUM_IMAGES) / f"{REJECTED}.jpg"
    repaired = Path(str(ladder / ".." / "images" / f"{REJECTED}.jpg"))
    before = repaired.read_bytes()
    repaired.write_bytes(picture.read_bytes())
    try:
        assert caption(ladder, tmp_path / "shorten", tiny_llava, "--prompts", "shorten", *everything) == 0
        assert "10 planned = 9 captioned + 1 rejected (no_earlier_caption 1)" in capsys.readouterr().out
        asked.clear()
        assert caption(ladder, tmp_path / "refine", tiny_llava, "--prompts", "refine", *everything) == 0
        assert "10 planned = 10 captioned + 0 rejected" in capsys.readouterr().out
        assert asked[REJECTED] == ["Describe this image and its style in a very detailed manner"]
        config = BuildConfig(captions=(str(ladder), str(tmp_path / "refine")), out=str(tmp_path / "data"))
        with built(config) as database:
            counts = ask(database, "SELECT len(captions), count(*) FROM samples GROUP BY ALL ORDER BY ALL")
        assert counts == [(1, 1), (4, 9)], "the image that the first run rejected is a sample of the second"
    finally:
        repaired.write_bytes(before)


def test_images_that_a_query_names_are_captioned_again_and_merge_with_the_first_run(
    ladder: Path, tmp_path: Path, tiny_llava: Path
) -> None:
    only = ("--only", "SELECT key FROM images ORDER BY key LIMIT 4")
    assert caption(ladder, tmp_path / "again", tiny_llava, "--prompts", "long_short", *only) == 0
    status = read_status(Folder(str(tmp_path / "again")))
    assert (status.planned, status.captioned) == (4, 4)
    config = BuildConfig(captions=(str(ladder), str(tmp_path / "again")), out=str(tmp_path / "data"))
    with built(config) as database:
        prompts = "list_sort(list_transform(captions, lambda c: c.prompt))"
        found = ask(database, f"SELECT {prompts} AS prompts, count(*) FROM samples GROUP BY ALL ORDER BY ALL")
    # Both runs' captions; a prompt of one name in two different runs is called by its run, on all images.
    assert found == [
        (["again/short", "dense", "long", "medium", "run/short"], 4),
        (["dense", "medium", "run/short"], 5),
    ]


def test_the_same_command_resumes_and_another_query_is_another_run(
    ladder: Path, tmp_path: Path, tiny_llava: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, only = tmp_path / "run", "SELECT key FROM captions WHERE prompt = 'dense' AND key < 'picture-0-0006'"
    assert caption(ladder, run, tiny_llava, "--only", "SELECT 'picture-0-0000' AS key", "--limit", "1", "--unit_size", "9") == 0
    assert caption(ladder, tmp_path / "b", tiny_llava, "--only", only, "--unit_size", "2", "--limit", "2") == 0
    assert "2 captioned + 0 rejected + 3 to do" in capsys.readouterr().out
    assert caption(ladder, tmp_path / "b", tiny_llava, "--only", only, "--unit_size", "2") == 0
    assert "5 planned = 5 captioned + 0 rejected; 3 of 3 units" in capsys.readouterr().out
    assert caption(ladder, tmp_path / "b", tiny_llava, "--unit_size", "2") == 2
    assert "holds a run with another only: give" in capsys.readouterr().err


def test_a_query_is_changed_while_nothing_is_committed(
    *, ladder: Path, tmp_path: Path, tiny_llava: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("foundry.units.run.run_job", lambda *_, **__: False)
        assert caption(ladder, tmp_path / "run", tiny_llava, "--only", "SELECT key FROM rejected") == 1
    assert caption(ladder, tmp_path / "run", tiny_llava, "--only", "SELECT key FROM images LIMIT 2") == 0
    said = capsys.readouterr().out
    assert "started again with other only\n" in said and "2 planned = 2 captioned" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--images", "photos"], "images must be left out with captions_from"),
        (["--prompts", "PROMPTS"], "use {caption.brief}, but the prompts of that run are dense, medium, short"),
        (["--captions_from", "OUT/"], "captions_from is the run of this command, "),
        (["--captions_from", "/nowhere"], "/nowhere is not a captioning run"),
        (
            ["--only", "SELECT key FROM caption"],
            "there is no table caption: did you mean captions or caption_scores or caption_objects? (--only)",
        ),
        (["--only", "SELECT key FROM"], "(--only)"),
        (["--only", "SELECT caption FROM captions"], "the query must return a column key, it returns caption"),
        (["--only", "SELECT 'nobody' AS key"], "the query names 1 keys that are not images"),
    ],
)
def test_mistakes_are_one_line_before_work_begins(
    *, more: list[str], message: str, ladder: Path, tmp_path: Path, tiny_llava: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "mine.yaml"
    prompts.write_text("{name: mine, version: 1, prompts: [{name: a, text: 'Why {caption.brief}?'}]}")
    places = {"PROMPTS": str(prompts), "OUT/": f"{tmp_path}/run/"}
    given = [places.get(word, word) for word in more]
    if "--captions_from" in given:
        arguments = run_arguments("", tmp_path / "run", tiny_llava, *given)[2:]
        code = run_command(CaptionConfig, main, prog="python -m captioner.run", example="", argv=arguments)
    else:
        code = caption(ladder, tmp_path / "run", tiny_llava, *given)
    said = capsys.readouterr().err
    assert code == 2 and message in said and len(said.splitlines()) == 1, said
    assert not (tmp_path / "run").exists(), "the corrected command begins a new run"


def test_prompts_with_captions_need_a_run_and_columns_need_to_be_there(
    tmp_path: Path, tiny_llava: Path, asked: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    images = save_pictures(tmp_path / "images", count=3)
    (images / "picture-0-0000.json").write_text(json.dumps({"tags": "owl</s>"}))

    def run(out: str, prompts: str, *sources: str) -> int:
        arguments = [*run_arguments(images, tmp_path / out, tiny_llava, *FLOAT, "--prompts", prompts)]
        arguments[1:2] = sources or [str(images)]
        return run_command(CaptionConfig, main, prog="python -m captioner.run", example="", argv=arguments)

    assert run("a", "paper", str(images), "--only", "SELECT key FROM images") == 2
    assert "only needs captions_from, the run that it queries (--only)" in capsys.readouterr().err
    assert run("a", "paper", str(images), "--engine", "vlm") == 2
    assert "engine must be one of transformers, vllm, endpoint, not 'vlm' (--engine)" in capsys.readouterr().err
    assert run("a", "papers") == 2
    assert "there is no prompt set papers: did you mean paper? (--prompts)" in capsys.readouterr().err
    bad = tmp_path / "bad.yaml"
    bad.write_text("{name: bad, version: 1, prompts: [{name: goods, text: 'What?', schema: {type: array}}]}")
    assert run("a", str(bad)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {bad}: prompt goods: the schema must be") and said.endswith("(--prompts)\n")
    assert run("a", "refine") == 2
    assert "the prompts refine use {caption}: name the run that has the captions (--captions_from)" in capsys.readouterr().err
    mine = tmp_path / "mine.yaml"
    mine.write_text("{name: mine, version: 1, prompts: [{name: a, text: 'Tags: {metadata.tags}?', fallback: 'What?'}]}")
    assert run("b", str(mine)) == 0
    assert asked == {"picture-0-0000": ["Tags: owl?"], "picture-0-0001": ["What?"], "picture-0-0002": ["What?"]}
    (images / "list.csv").write_text("path,tag\npicture-0-0000.jpg,owl\n")
    assert run("c", str(mine), str(images / "list.csv")) == 2
    said = capsys.readouterr().err
    assert "the prompts mine use metadata.tags, which the images lack (they carry tag): correct the prompts" in said
    mine.write_text(mine.read_text().replace("tags}", "tgas}"))
    assert run("d", str(mine)) == 0
    assert "warning: the prompts mine use metadata.tgas, which the images lack (they carry" in capsys.readouterr().err
