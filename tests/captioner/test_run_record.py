"""The contents of a folder are checked before anything costly, and belongs to one run as soon as something is committed."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from captioner.caption_job import CaptionJob, caption_job
from captioner.captioning import plan_run
from captioner.config import CaptionConfig
from captioner.run import main
from captioner.run_record import check_commits
from dataset_builder.concepts.t5_view import T5Config
from dataset_builder.runs.plan import Plan
from foundry.command_line import run_command
from foundry.errors import UserError
from foundry.images.sources import find_sources
from foundry.storage.folder import Folder
from foundry.units.commits import commit_unit, read_commits
from tests.captioner.conftest import run_arguments, save_pictures
from tests.foundry.images.containers import jpeg, tar_bytes


def planned(config: CaptionConfig) -> tuple[Plan, CaptionJob]:
    job = caption_job(config)
    return plan_run(config, Folder(config.out), job, find_sources(config.images)), job


def test_a_run_of_which_nothing_is_committed_may_be_begun_again(tmp_path: Path, tiny_llava: Path) -> None:
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
    commit_unit(run, run_id=job.run_id, unit=plan.units()[0], tables={}, rejected={})
    with pytest.raises(UserError, match=r"holds a run with another prompts\.name"):
        planned(replace(config, prompts="ladder", images=[str(others)]))
    with pytest.raises(UserError, match="holds a run over .*others: name that too"):
        planned(config)
    with pytest.raises(UserError, match="holds 1 units of another run"):
        check_commits(run, read_commits(run), run_id="mine")


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
