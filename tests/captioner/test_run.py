"""The main job as its users start it: nothing is lost, a resume cannot mix, and what went wrong is one line."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from captioner.config import UNIT_BYTES, CaptionConfig, default_unit_size
from captioner.runs.captioning import _allowed
from captioner.runs.job import caption_job
from dataset_builder.runs.status import read_status
from foundry.errors import UserError
from foundry.hardware import auto_dtype
from foundry.storage.folder import Folder
from foundry.units.cluster import RaySettings
from foundry.units.commits import Commit, Unit, read_commits
from foundry.units.run import run_job
from tests.captioner.conftest import caption, caption_here, caption_plainly, run_arguments, save_pictures
from tests.foundry.images.containers import jpeg, tar_bytes


def table(run: Path, kind: str) -> pa.Table:
    files = [commit.files[kind] for commit in read_commits(Folder(str(run))) if kind in commit.files]
    return pa.concat_tables([pq.read_table(run / file.path) for file in files])


def starts_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted((run / "starts").iterdir())]


def broken_images(folder: Path) -> dict[str, str]:
    """Ten kinds of broken image; returns the reason expected for each file."""
    folder.mkdir()
    good = folder / "good.jpg"
    Image.new("RGB", (64, 64), "red").save(good)
    data = good.read_bytes()
    Image.new("RGB", (64, 64), "blue").save(folder / "whole.png")
    png = (folder / "whole.png").read_bytes()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("this is no image")
    (folder / "html.jpg").write_text("<html><body>404 not found</body></html>")
    (folder / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (folder / "truncated.png").write_bytes(png[: len(png) // 2])
    (folder / "header.jpg").write_bytes(data[:10])
    (folder / "flipped.png").write_bytes(png[:60] + b"\xff\xff\xff\xff" + png[64:])
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    Image.new("1", (20000, 10000)).save(folder / "bomb.png")
    (folder / "good-json.jpg").write_bytes(data)
    (folder / "good-json.json").write_text("{ this is no JSON")
    return {
        "empty": "empty",
        "text": "not_an_image",
        "html": "not_an_image",
        "truncated.jpg": "broken",
        "truncated.png": "broken",
        "header": "broken",
        "flipped": "broken",
        "gone": "unreadable",
        "bomb": "too_many_pixels",
        "good-json": "bad_sidecar",
    }


def test_each_broken_image_is_rejected_with_its_reason_and_all_others_are_captioned(tmp_path: Path, tiny_llava: Path) -> None:
    expected = broken_images(tmp_path / "images")
    save_pictures(tmp_path / "images", count=11)
    Image.new("RGB", (64, 64), "green").save(tmp_path / "images" / "_DSC1234.JPG")
    (tmp_path / "images" / "._DSC1234.JPG").write_bytes(b"what macOS leaves next to it")
    (tmp_path / "images" / "_truth").mkdir()
    code, output = caption_plainly(
        run_arguments(tmp_path / "images", tmp_path / "run", tiny_llava, "--limits.max_image_pixels", "100000000")
    )
    assert code == 0, output
    assert "24 planned = 14 captioned + 10 rejected" in output
    assert "skipped 1 file and 1 folder (name starts with ., or with _ for " in output
    assert "_DSC1234" in table(tmp_path / "run", "captions")["key"].to_pylist()
    rejected = table(tmp_path / "run", "rejected").to_pylist()
    assert {row["key"]: row["reason"] for row in rejected} == expected
    assert all(row["message"] for row in rejected)


def test_a_run_resumes_grows_and_refuses_to_mix(tmp_path: Path, tiny_llava: Path) -> None:
    images, run = save_pictures(tmp_path / "images", count=20), tmp_path / "run"
    begun = ["--limit", "9", "--prompts", "ladder", "--generation.dtype", "bfloat16"]
    code, output = caption_plainly(run_arguments(images, run, tiny_llava, *begun))
    assert code == 0 and "20 planned = 16 captioned + 0 rejected + 4 to do; 2 of 3 units" in output, output
    first = {commit.unit: commit for commit in read_commits(Folder(str(run)))}

    save_pictures(images, count=3, seed=1)
    code, output = caption_plainly(run_arguments(images, run, tiny_llava, "--prompts", "ladder"))
    assert code == 0 and "23 planned = 23 captioned + 0 rejected; 4 of 4 units" in output, output
    second = {commit.unit: commit for commit in read_commits(Folder(str(run)))}
    assert {unit: second[unit] for unit in first} == first, "what was committed is never done again"

    captions = table(run, "captions")
    pairs = list(zip(captions["key"].to_pylist(), captions["prompt"].to_pylist(), strict=True))
    assert len(pairs) == 23 * 3 and len(set(pairs)) == len(pairs)
    assert table(run, "images")["alt_text"][3].as_py() == "a picture of the number 3"

    record = json.loads((run / "run.json").read_text())
    assert record["settings"]["generation"]["dtype"] == "bfloat16", "auto keeps the format that the run started with"

    starts = starts_of(run)
    assert [start["config"]["limit"] for start in starts] == [9, None]
    assert {(start["dtype"], start["device"], start["versions"]["torch"]) for start in starts} == {
        ("bfloat16", "CPU", version("torch"))
    }

    code, output = caption_here(run_arguments(images, run, tiny_llava, *begun[:-1], "float32"))
    assert code == 2 and "holds a run with another generation.dtype:" in output
    code, output = caption_here(run_arguments(images, run, tiny_llava))
    assert code == 2 and "holds a run with another prompts.name, prompts.prompts" in output


def test_what_a_caption_row_says_adds_up(tmp_path: Path, tiny_llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = save_pictures(tmp_path / "images", count=5).parent / "run"
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)
    code, output = caption(run_arguments("images", "run", tiny_llava))
    assert code == 0 and f"in {run}: 5 images" in output, "workers have another working directory"
    captions, counts = table(run, "captions").to_pylist(), table(run, "noun_counts").to_pylist()
    for row in captions:
        assert row["num_words"] == len(row["caption"].split())
        assert row["num_nouns"] == len(row["nouns"]) and row["num_distinct_nouns"] == len(set(row["nouns"]))
        assert row["min_logprob"] <= row["mean_logprob"] <= 0
        assert (row["finish_reason"] == "length") == (row["num_tokens"] == 12)
    assert sum(row["num_nouns"] for row in captions) == sum(row["count"] for row in counts)
    assert sum(row["num_t5_nouns"] for row in captions) == sum(row["count_t5"] for row in counts)
    record = json.loads((run / "run.json").read_text())
    assert record["settings"]["generation"]["dtype"] == auto_dtype(), "auto is not what a run is named by"
    assert record["settings"]["prompts"]["prompts"][0]["text"] == "Describe this image and its style in a very detailed manner"
    (start,) = starts_of(run)
    assert start["cluster"].startswith("1 node, ") and start["cluster"].endswith(" CPUs, 0 GPUs")
    assert read_status(Folder(str(run))).remaining == 0


def test_too_many_rejected_images_stop_the_run_with_1(tmp_path: Path, tiny_llava: Path) -> None:
    images = save_pictures(tmp_path / "images", count=8)
    for number in range(120):
        (images / f"broken-{number}.jpg").write_bytes(b"nonsense")
    code, output = caption_plainly(run_arguments(images, tmp_path / "run", tiny_llava))
    assert code == 1 and "are rejected" in output and "Traceback" not in output, output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "empty", "--out", "run"], "no images"),
        (["--images", "nowhere", "--out", "run"], "nowhere"),
        (["--images", "images", "--out", "images"], "holds no captioning run"),
        (["--images", "images", "--out", "run", "--model", "someone/llava-of-theirs"], "is unavailable"),
        (["--images", "images", "--out", "run", "--model", "./nowhere"], "there is no model folder"),
        (["--images", "images", "--out", "run", "--ray.address", "127.0.0.1:9"], "no Ray answers at 127.0.0.1:9"),
        (["--images", "images", "--out", "run", "--unit_size", "0"], "unit_size must be 1 or more"),
        (["--images", "images", "--out", "run", "--generation.batchsize", "3"], "batch_size"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, tiny_llava: Path, monkeypatch: pytest.MonkeyPatch, *, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_pictures(tmp_path / "images", count=1)
    (tmp_path / "empty").mkdir()
    model = [] if "--model" in arguments else ["--model", str(tiny_llava)]
    code, output = caption_here([*arguments, *model, "--t5.tokenizer", "mini"])
    assert code == 2
    lines = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and message in lines[0] and "Traceback" not in output, output


def test_captions_of_a_real_model_are_not_counted_as_the_small_worlds(tmp_path: Path, tiny_llava: Path) -> None:
    arguments = ["--images", str(save_pictures(tmp_path / "images", count=1)), "--out", str(tmp_path / "run")]
    for given in ([], ["--t5.max_tokens", "300"]):
        fails([*arguments, "--model", str(tiny_llava), *given], "the T5 tokenizer google/t5-v1_1-xxl cannot be loaded (the hub")
        fails([*arguments, "--model", str(tiny_llava), *given], "(--t5.tokenizer)")
    assert not (tmp_path / "run").exists()
    job = caption_job(CaptionConfig(images=["images"], out="run", model="mini")).with_dtype("float32")
    assert job.replica_bytes == pytest.approx(2 * job.with_dtype("bfloat16").replica_bytes) == pytest.approx(24.5e6, rel=0.03)
    assert job.settings["t5"]["tokenizer"] == job.t5.tokenizer == "mini"


def test_without_arguments_it_says_how_to_begin() -> None:
    code, output = caption([])
    assert code == 2 and "example: python -m captioner.run --images photos/ --out runs/photos" in output


def test_a_tar_that_has_gone_ends_the_run_and_rejects_nothing(tmp_path: Path, tiny_llava: Path) -> None:
    images, run = save_pictures(tmp_path / "images", count=8), tmp_path / "run"
    one = tmp_path / "images" / "x.tar"
    one.write_bytes(tar_bytes([(f"t{number}.jpg", jpeg(number)) for number in range(4)]))
    assert caption_plainly(run_arguments(images, run, tiny_llava, "--limit", "8"))[0] == 0
    one.unlink()
    code, output = caption(run_arguments(images, run, tiny_llava))
    assert code == 2 and "Traceback" not in output, output
    assert f"{one} existed when its images were planned, and is missing now: restore it" in output
    assert read_status(Folder(str(run))).rejected == 0


def fails(arguments: list[str], message: str) -> None:
    code, output = caption_here([*arguments, "--generation.dtype", "float32"])
    assert code == 2 and output.count("error:") == 1 and message in output and len(output.splitlines()) == 1, output


def test_a_folder_that_cannot_be_written_and_records_of_something_else_are_one_line(tmp_path: Path, tiny_llava: Path) -> None:
    images, run = save_pictures(tmp_path / "images", count=1), tmp_path / "run"
    (tmp_path / "file").write_text("")
    fails(run_arguments(images, tmp_path / "file" / "run", tiny_llava), "cannot work in")
    fails(run_arguments(images, "nonsense://run", tiny_llava), "nonsense")
    run.mkdir()
    for content in ("", "{", "[]", "{}", '{"settings": {}}', '{"run_id": 1, "settings": [], "images": {}, "carried": 0}'):
        (run / "run.json").write_text(content)
        fails(run_arguments(images, run, tiny_llava), "run.json is damaged, or belongs to something else")
        with pytest.raises(UserError, match="damaged, or belongs to something else"):
            read_status(Folder(str(run)))


@pytest.mark.parametrize(
    "config",
    ["", "{", "[1]", '{"vision_config": {"image_size": "large"}}', '{"vision_config": {}, "image_grid_pinpoints": [5]}'],
)
def test_a_model_with_a_bad_config_is_one_line(tmp_path: Path, config: str) -> None:
    images = save_pictures(tmp_path / "images", count=1)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(config)
    fails(run_arguments(images, tmp_path / "run", tmp_path / "model"), "config.json")


def test_the_budget_counts_what_is_wanted_and_what_was_done(tmp_path: Path) -> None:
    config = CaptionConfig(images=["images"], out="run", model="mini", max_rejected=0.5)
    units = [Unit(number=number, part="", row_group=0, num_images=512) for number in range(3)]
    commit = Commit(run_id="", unit=2, planned=512, completed=512, rejected={}, files={})
    assert _allowed(config, units[:1], []) == 256
    assert _allowed(config, units[:1], [commit]) == 512
    assert _allowed(config, units, [commit]) == 768


def test_a_budget_that_is_used_up_stops_before_ray_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert not run_job(None, [], settings=RaySettings(), visible={}, budget=-1, started=0.0)  # type: ignore[arg-type]
    assert "more images are rejected already than max_rejected allows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--images", "images"),
        ("--out", "run"),
        ("--model", "model"),
        ("--model", "./nowhere"),
        ("--captions_from", "runs/first"),
        ("--prompts", "mine.yaml"),
        ("--tagger.spacy_model", "model"),
        ("--t5.tokenizer", "model"),
    ],
)
def test_a_job_refuses_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, option: str, value: str) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "mine.yaml").write_text("")
    options = {"--images": str(tmp_path), "--out": str(tmp_path / "run"), "--model": "mini", option: value}
    if option == "--captions_from":
        del options["--images"]
    fails([word for pair in options.items() for word in pair], f"{value}: a relative path inside a Ray job")


@pytest.mark.parametrize(("side_px", "size"), [(64, 512), (336, 512), (672, 512), (1152, 179), (100_000, 1)])
def test_a_unit_is_smaller_where_the_model_reads_large_images(side_px: int, size: int) -> None:
    assert default_unit_size(side_px) == size
    assert size in (1, 512) or 0.99 * UNIT_BYTES < size * side_px * side_px * 4.5 <= UNIT_BYTES
