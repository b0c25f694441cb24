"""Captions that mean nothing are rejected, and runs that were made before a setting was recorded resume."""

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from captioner.config import CaptionConfig
from captioner.engines.model_source import LLAVA_PROMPT
from captioner.run import main
from dataset_builder.runs.status import read_status
from dataset_builder.sql.run_files import open_run
from foundry.command_line import run_command
from foundry.images.index import ImageReference
from foundry.images.reader import content_hash
from foundry.storage.folder import Folder
from foundry.storage.run_record import RunRecord
from foundry.units.commits import committed_units, read_commits
from tests.captioner.conftest import run_arguments, save_pictures
from tests.captioner.tiny_llava import model_without_key, save_tiny_llava
from tests.chat_server import MODEL, Reply, fails, judge_server, says, text_of
from tests.foundry.units.plain_loop import run_plainly


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foundry.units.run.run_job", run_plainly)


def caption(images: Path, run: Path, model: Path, *more: str) -> int:
    arguments = run_arguments(images, run, model, "--generation.dtype", "float32", *more)
    return run_command(CaptionConfig, main, prog="python -m captioner.run", example="", argv=arguments)


def name_pictures(images: Path, *, keys: Sequence[int]) -> None:
    """Gives pictures of these numbers the alt text `a key`."""
    for number in keys:
        (images / f"picture-0-{number:04d}.txt").write_text("a key")


def test_an_image_for_which_the_model_computes_nan_is_rejected_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, run = save_pictures(tmp_path / "images", count=10), tmp_path / "run"
    name_pictures(images, keys=[3, 8, 9])  # of units of 8 images: the second one has nothing else, but is not the first
    assert caption(images, run, model_without_key(tmp_path / "model"), "--prompts", "alt_text") == 0
    assert "10 planned = 7 captioned + 3 rejected (not_finite 3)" in capsys.readouterr().out
    commits = read_commits(Folder(str(run)))
    assert [commit.rejected for commit in commits] == [{"not_finite": 1}, {"not_finite": 2}]
    assert [commit.files["captions"].rows for commit in commits if "captions" in commit.files] == [7]
    assert commits[0].files["images"].rows == 7 and commits[0].num_tokens > 0


def test_an_image_whose_question_exceeds_the_context_is_rejected_alone(tmp_path: Path, tiny_llava: Path) -> None:
    images, run = save_pictures(tmp_path / "images", count=9), tmp_path / "run"
    (images / "picture-0-0003.txt").write_text("owl " * 2048)
    assert caption(images, run, tiny_llava, "--prompts", "alt_text") == 0
    assert [commit.rejected for commit in read_commits(Folder(str(run)))] == [{"model_error": 1}, {}]
    with open_run(str(run)) as database:
        (row,) = database.fetch("SELECT key, message FROM rejected").to_pylist()
        assert database.fetch("SELECT status, count(*) AS n FROM captions GROUP BY ALL").to_pylist() == [
            {"status": "ok", "n": 8}
        ]
    assert row["key"] == "picture-0-0003" and "and a caption up to 12 more; the context has 2048" in row["message"]


def test_a_model_that_computes_nan_for_all_of_the_first_unit_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, run = save_pictures(tmp_path / "images", count=3), tmp_path / "run"
    name_pictures(images, keys=range(3))
    assert caption(images, run, model_without_key(tmp_path / "model"), "--prompts", "alt_text") == 2
    error = capsys.readouterr().err
    assert "NaN or infinity for all 3 images of the first unit: give the number format float32 or bfloat16" in error
    assert not committed_units(Folder(str(run))), "nothing is rejected for a fault of the model"


@pytest.mark.parametrize("has_template", [True, False])
def test_a_run_of_before_the_settings_were_recorded_resumes_as_it_was_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, has_template: bool
) -> None:
    """Such a run has neither `image_fit` nor `prompt_format`: images were cropped, and LLaVA 1.5's prompt was assumed."""
    images, run, model = save_pictures(tmp_path / "images", count=8), tmp_path / "run", save_tiny_llava(tmp_path / "model")
    if not has_template:
        (model / "chat_template.jinja").unlink()
    assert caption(images, run, model, "--generation.image_fit", "processor") == 0
    made_before(run)
    save_pictures(images, count=1, seed=1)
    capsys.readouterr()
    assert caption(images, run, model) == 0
    said = capsys.readouterr().out
    assert read_status(Folder(str(run))).captioned == 9
    assert ("has no chat template: prompts are put into LLaVA 1.5's, " in said) is not has_template
    assert "padded" not in said
    assert caption(images, run, model, "--generation.image_fit", "pad") == 2
    assert "holds a run with another generation.image_fit" in capsys.readouterr().err


def made_before(run: Path) -> None:
    """Makes a run one of the time when neither setting was recorded; its commits get the run_id that belongs to that."""
    record = RunRecord.read(Folder(str(run)))
    assert record is not None and "image_fit" not in record.settings["generation"]
    model = {name: value for name, value in record.settings["model"].items() if name != "prompt_format"}
    old = record.with_settings(record.settings | {"model": model})
    old.write(Folder(str(run)))
    for file in (run / "commits").iterdir():
        file.write_text(file.read_text().replace(record.run_id, old.run_id))


def test_what_is_assumed_of_a_model_is_said_and_part_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, model = save_pictures(tmp_path / "images", count=2), save_tiny_llava(tmp_path / "model")
    ids = []
    for number, template in enumerate(["chat_template.jinja", "tokenizer_config.json", ""]):
        run = tmp_path / f"run-{number}"
        assert caption(images, run, model) == 0
        settings = json.loads((run / "run.json").read_text())["settings"]
        ids.append(json.loads((run / "run.json").read_text())["run_id"])
        assert settings["generation"]["image_fit"] == "pad"
        expected = {"": LLAVA_PROMPT, "tokenizer_config.json": "chat_template of tokenizer_config.json"}
        assert settings["model"].get("prompt_format") == expected.get(template)
        assert ("has no chat template" in capsys.readouterr().out) == (not template)
        forget_template(model, template)
    assert len(set(ids)) == 3
    assert caption(images, tmp_path / "run-0", model) == 2
    assert "holds a run with another model." in capsys.readouterr().err


def forget_template(model: Path, file: str) -> None:
    """Moves the chat template from its own file to the tokenizer's, or takes it away from there."""
    config = json.loads((model / "tokenizer_config.json").read_text())
    if file == "chat_template.jinja":
        config["chat_template"] = (model / file).read_text()
        (model / file).unlink()
    else:
        config.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(config))


def test_another_fit_is_another_run_in_both_directions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, run, model = save_pictures(tmp_path / "images", count=2), tmp_path / "run", save_tiny_llava(tmp_path / "model")
    assert caption(images, run, model) == 0
    assert "images padded to squares" in capsys.readouterr().out
    assert caption(images, run, model, "--generation.image_fit", "processor") == 2
    assert "holds a run with another generation.image_fit" in capsys.readouterr().err


def test_masks_next_to_images_are_left_out_unless_asked_for(tmp_path: Path, tiny_llava: Path) -> None:
    images = save_pictures(tmp_path / "images", count=2)
    (images / "picture-0-0000.mask.png").write_bytes((images / "picture-0-0000.jpg").read_bytes())
    assert caption(images, tmp_path / "without", tiny_llava) == 0
    assert caption(images, tmp_path / "with", tiny_llava, "--ignore", "[]") == 0
    planned = [sum(commit.planned for commit in read_commits(Folder(str(tmp_path / name)))) for name in ("without", "with")]
    assert planned == [2, 3]


def test_a_column_of_json_files_has_a_type_that_holds_all_of_them(tmp_path: Path, tiny_llava: Path) -> None:
    images = save_pictures(tmp_path / "images", count=10)
    for number in range(10):
        rating = number if number < 9 else "high"
        (images / f"picture-0-{number:04d}.json").write_text(json.dumps({"rating": rating}))
    assert caption(images, tmp_path / "run", tiny_llava) == 0
    with open_run(str(tmp_path / "run")) as database:
        found = database.fetch("SELECT rating FROM images ORDER BY key")["rating"].to_pylist()
    assert found == [*map(str, range(9)), "high"]


def test_images_are_as_large_as_they_were_unless_another_size_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, run, model = save_pictures(tmp_path / "images", count=8), tmp_path / "run", save_tiny_llava(tmp_path / "model")
    assert caption(images, run, model, "--generation.image_side_px", "33") == 0
    record = RunRecord.read(Folder(str(run)))
    assert record is not None and record.settings["model"]["image_side_px"] == 33
    assert "image_side_px" not in record.settings["generation"]
    save_pictures(images, count=1, seed=1)
    assert caption(images, run, model) == 0, "what a run was started with stays"
    assert caption(images, run, model, "--generation.image_side_px", "32") == 2
    assert "holds a run with another model.image_side_px" in capsys.readouterr().err


def test_images_of_the_web_are_read_and_hashed_here_and_sent_by_their_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that have one: a local file goes as its bytes, and a broken image is rejected here."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    images = save_pictures(tmp_path / "images", count=2)
    (images / "broken.jpg").write_bytes(b"no image")
    folder = partial(SimpleHTTPRequestHandler, directory=str(images))
    web = ThreadingHTTPServer(("127.0.0.1", 0), folder)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{web.server_port}"
    local = save_pictures(tmp_path / "local", count=1, seed=1) / "picture-1-0000.jpg"
    paths = [f"{base}/picture-0-0000.jpg", f"{base}/picture-0-0001.jpg", f"{base}/broken.jpg", str(local)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps({"path": path}) + "\n" for path in paths))
    with judge_server(lambda body: says("An owl.")) as server:
        more = ["--engine", "endpoint", "--endpoint.url", server.url, "--endpoint.image_urls", "true"]
        arguments = run_arguments(tmp_path / "list.jsonl", tmp_path / "run", Path(MODEL), *more)
        assert run_command(CaptionConfig, main, prog="", example="", argv=arguments) == 0
    web.shutdown()
    sent = [body["messages"][0]["content"][0]["image_url"]["url"] for body in server.bodies[1:]]  # the first is of a grey image
    assert sorted(url for url in sent if url.startswith("http")) == paths[:2], "in any order, since requests overlap"
    assert len([url for url in sent if url.startswith("data:")]) == 1
    with open_run(str(tmp_path / "run")) as database:
        rows = database.fetch("SELECT content_hash FROM images ORDER BY uri").to_pylist()
        assert database.fetch("SELECT reason FROM rejected").to_pylist() == [{"reason": "not_an_image"}]
    files = [local, images / "picture-0-0000.jpg", images / "picture-0-0001.jpg"]
    assert [row["content_hash"] for row in rows] == [content_hash(file.read_bytes()) for file in files]


def caption_at(url: str, images: Path, run: Path, *more: str) -> int:
    """A run of the model `m` at a server; captions of all images are asked for at once."""
    arguments = run_arguments(images, run, Path("m"), "--engine", "endpoint", "--endpoint.url", url, *more)
    return run_command(CaptionConfig, main, prog="", example="", argv=arguments)


def test_refused_requests_reject_their_images_and_all_that_was_paid_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    images, run = save_pictures(tmp_path / "images", count=8), tmp_path / "run"

    def reply(body: dict[str, Any]) -> Reply:
        refused = "number 3" in text_of(body) and "short" in text_of(body)
        return fails(400, "no such image") if refused else says("An owl.")

    prompts = tmp_path / "mine.yaml"
    prompts.write_text(
        "{name: mine, version: 1, prompts: [{name: a, text: 'Long: {alt_text}', fallback: 'What?'}, "
        "{name: b, text: 'In short: {alt_text}', fallback: 'What?'}]}"
    )
    prices = ["--endpoint.input_price", "1", "--endpoint.output_price", "1"]
    with judge_server(reply) as server:
        assert caption_at(server.url, images, run, "--prompts", str(prompts), *prices) == 0
        assert len(server.bodies) == 1 + 16, "the grey image, and each request once"
    said = capsys.readouterr().out
    assert "8 planned = 7 captioned + 1 rejected (model_error 1)" in said
    assert f"{900 * 15:,} input tokens and {15 * 15:,} output tokens" in said, "the refused image's other answer too"
    with open_run(str(run)) as database:
        (row,) = database.fetch("SELECT key, message FROM rejected").to_pylist()
    assert row["key"] == "picture-0-0003" and "HTTP 400" in row["message"] and "no such image" in row["message"]


@pytest.mark.parametrize("prompts", ["paper", "structured"])
def test_what_a_content_filter_withholds_is_a_refusal_and_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: str
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    images, run = save_pictures(tmp_path / "images", count=2), tmp_path / "run"
    with judge_server(lambda body: says("A wom", finish_reason="content_filter")) as server:
        assert caption_at(server.url, images, run, "--prompts", prompts) == 0
        assert len(server.bodies) == 3
    with open_run(str(run)) as database:
        rows = database.fetch("SELECT DISTINCT status, caption FROM captions").to_pylist()
        reasons = database.fetch("SELECT finish_reason FROM captions WHERE caption_raw = 'A wom'").to_pylist()
    assert rows == [{"status": "refusal", "caption": ""}]
    assert reasons == [{"finish_reason": "content_filter"}] * 2
    (commit,) = read_commits(Folder(str(run)))
    assert commit.statuses == {"refusal": 2}


def test_a_served_run_resumes_where_the_server_s_list_changes_in_what_names_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    images, run = save_pictures(tmp_path / "images", count=8), tmp_path / "run"
    with judge_server(lambda body: says("An owl.")) as server:
        server.listed = {"root": "Qwen", "max_model_len": 512}
        assert caption_at(server.url, images, run) == 0
        record = RunRecord.read(Folder(str(run)))
        assert record is not None and record.settings["model"]["listed"] == {"root": "Qwen"}
        old = record.with_settings(
            record.settings | {"model": record.settings["model"] | {"listed": {"id": "m", **server.listed}}}
        )
        old.write(Folder(str(run)))  # as it was recorded before
        for file in (run / "commits").iterdir():
            file.write_text(file.read_text().replace(record.run_id, old.run_id))
        server.listed = {"root": "Qwen", "max_model_len": 8192, "pricing": {"prompt": "0.1"}}
        save_pictures(images, count=1, seed=1)
        assert caption_at(server.url, images, run) == 0, capsys.readouterr().err
        assert read_status(Folder(str(run))).captioned == 9
        server.listed = {"root": "another"}
        assert caption_at(server.url, images, run) == 2
    assert "another model.listed.root: give the model as it was, and the settings in its run.json" in capsys.readouterr().err


def test_only_an_image_of_its_own_has_a_web_address() -> None:
    whole = ImageReference(uri="https://photos/a.jpg?token=1")
    assert whole.web_address == whole.uri
    for other in (
        {"member": "a.jpg", "byte_offset": 512},
        {"row": 3},
        {"uri": "https://me:secret@photos/a.jpg"},
        {"uri": "s3://photos/a.jpg"},
        {"uri": "/photos/a.jpg"},
        {"uri": "data:image/png;base64,aGk="},
    ):
        assert replace(whole, **other).web_address is None, other
