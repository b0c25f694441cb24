"""The contents of a folder are checked before anything costly, and belongs to one run as soon as something is committed."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from captioner.config import CaptionConfig
from captioner.engines.generation import GenerationSettings
from captioner.run import main
from captioner.runs.captioning import plan_run
from captioner.runs.job import CaptionJob, caption_job
from captioner.runs.start import begin, check_commits, check_folder, record_start
from dataset_builder.concepts.t5_view import T5Config
from dataset_builder.runs.plan import Plan
from foundry.command_line import run_command
from foundry.errors import UserError
from foundry.images.sources import find_sources
from foundry.storage.folder import Folder
from foundry.storage.run_record import RunRecord
from foundry.units.commits import Unit, commit_name, commit_unit, read_commits
from tests.captioner.conftest import run_arguments, save_pictures
from tests.foundry.images.containers import jpeg, tar_bytes


def planned(config: CaptionConfig) -> tuple[Plan, CaptionJob]:
    job, run = caption_job(config), Folder(config.out)
    _, plan = plan_run(config, run, job, find_sources(config.images), before=check_folder(run))
    return plan, job


def test_a_run_of_which_nothing_is_committed_may_be_started_again(tmp_path: Path, tiny_llava: Path) -> None:
    images, run = save_pictures(tmp_path / "images", count=5), Folder(str(tmp_path / "run"))
    config = CaptionConfig(images=[str(images)], out=run.url, model=str(tiny_llava), unit_size=2, t5=T5Config(tokenizer="mini"))
    first, _ = planned(replace(config, prompts="ladder"))
    second, job = planned(config)
    record = json.loads(run.read("run.json"))
    assert record["run_id"] == job.run_id and record["settings"]["prompts"]["name"] == "paper"
    assert second == first, "other prompts are no reason to index again"
    assert [unit.num_images for unit in planned(replace(config, unit_size=3))[0].units()] == [3, 2]
    others = save_pictures(tmp_path / "others", count=1)
    plan, job = planned(replace(config, images=[str(others)]))
    assert plan.num_images == 1
    commit_unit(run, run_id=job.run_id, unit=plan.units()[0], tables={})
    with pytest.raises(UserError, match=r"holds a run with another prompts\.name"):
        planned(replace(config, prompts="ladder", images=[str(others)]))
    with pytest.raises(UserError, match="holds a run over .*others: name that too"):
        planned(config)
    with pytest.raises(UserError, match="holds 1 units of another run"):
        check_commits(run, read_commits(run), run_id="mine")


def test_a_resumed_run_reads_its_record_and_its_commits_once(
    tmp_path: Path, tiny_llava: Path, file_reads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    images, run = save_pictures(tmp_path / "images", count=5), Folder(str(tmp_path / "run"))
    arguments = run_arguments(images, Path(run.url), tiny_llava, "--generation.dtype", "float32")

    def resume() -> int:
        return run_command(CaptionConfig, main, prog="python -m captioner.run", example="", argv=arguments)

    generation = GenerationSettings(max_new_tokens=12, dtype="float32")
    t5 = T5Config(tokenizer="mini")
    config = CaptionConfig(images=[str(images)], out=run.url, model=str(tiny_llava), unit_size=8, t5=t5, generation=generation)
    plan, job = planned(config)
    for unit in plan.units():
        commit_unit(run, run_id=job.run_id, unit=unit, tables={})
    file_reads.clear()
    assert resume() == 0, capsys.readouterr().err
    assert "5 planned = 5 captioned" in capsys.readouterr().out
    assert file_reads.count("run.json") == 1
    assert [name for name in file_reads if name.startswith("commits/")] == [commit_name(0)]


def test_who_begins_at_the_same_time_reads_what_the_other_created(tmp_path: Path, tiny_llava: Path) -> None:
    images, run = save_pictures(tmp_path / "images", count=2), Folder(str(tmp_path / "run"))
    config = CaptionConfig(images=[str(images)], out=run.url, model=str(tiny_llava), t5=T5Config(tokenizer="mini"))
    before, job = check_folder(run), caption_job(config)
    begin(config, run, job.settings, before=before)
    created = run.read("run.json")
    assert begin(config, run, job.settings, before=before) == RunRecord.read(run)
    assert before is None and run.read("run.json") == created, "not written a second time"
    unit = Unit(number=0, part="", row_group=0, num_images=2)
    commit_unit(run, run_id=job.run_id, unit=unit, tables={})
    with pytest.raises(UserError, match=r"holds a run with another prompts\.name"):
        begin(config, run, caption_job(replace(config, prompts="ladder")).settings, before=before)


def test_each_start_records_all_that_a_server_s_list_says_of_the_model(tmp_path: Path) -> None:
    run, config = Folder(str(tmp_path / "run")), CaptionConfig(images=["photos"], out="run", model="m", engine="endpoint")
    for listed in ({"root": "Qwen", "pricing": {"prompt": "0.1"}}, {}):
        record_start(run, config, dtype="auto", cluster="1 node", on_gpus=False, listed=listed)
    starts = [json.loads(run.read(f"starts/{name}")) for name in run.names("starts")]
    assert sorted((start.get("listed") for start in starts), key=bool) == [None, {"root": "Qwen", "pricing": {"prompt": "0.1"}}]


@pytest.mark.parametrize("bad", ["tar", "folder", "list"])
def test_bad_input_is_found_before_ray_starts(
    tmp_path: Path, tiny_llava: Path, monkeypatch: pytest.MonkeyPatch, *, bad: str
) -> None:
    monkeypatch.setattr("foundry.units.ray_session.start_ray", lambda settings: pytest.fail("Ray was started"))
    images, run = save_pictures(tmp_path / "images", count=1), tmp_path / "run"
    if bad == "tar":
        (images / "x.tar").write_bytes(tar_bytes([("a.jpg", jpeg(1))])[:600])
    elif bad == "list":
        (images / "x.jsonl").write_text('{"path": "a.jpg"}\nnonsense\n')
    else:
        run.mkdir()
        (run / "letter.txt").write_text("")
    output = io.StringIO()
    with contextlib.redirect_stderr(output):
        code = run_command(
            CaptionConfig, main, prog="python -m captioner.run", example="", argv=run_arguments(images, run, tiny_llava)
        )
    assert code == 2 and output.getvalue().count("error:") == 1, output.getvalue()
