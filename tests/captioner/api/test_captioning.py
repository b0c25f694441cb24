"""Captions from a notebook: a folder or a list of images becomes a run, which the same call resumes."""

from pathlib import Path
from typing import Any

import pytest

from captioner import caption, clean_caption, load_prompts, open_run
from captioner.prompt_sets import PROMPT_SETS
from foundry.errors import UserError
from tests.captioner.conftest import save_pictures
from tests.foundry.units.plain_loop import run_plainly

SMALL: dict[str, Any] = {
    "unit_size": 4,
    "generation": {"max_new_tokens": 12, "dtype": "float32"},
    "ray": {"num_replicas": 1, "cpus_per_replica": 1},
    "t5": {"tokenizer": "mini"},
}


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foundry.units.run.run_job", run_plainly)


def test_a_list_of_images_becomes_a_run_that_the_same_call_resumes(
    tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_pictures(tmp_path / "images", count=6)
    pictures = sorted(folder.glob("*.jpg"))
    run = caption(images=pictures, out=tmp_path / "run", model=tiny_llava, limit=4, **SMALL)  # type: ignore[arg-type]
    assert (run.status().planned, run.status().captioned) == (6, 4)
    assert "6 planned = 4 captioned + 0 rejected + 2 to do; 1 of 2 units" in capsys.readouterr().out
    before = run.sql("SELECT key, caption FROM captions ORDER BY key").rows()
    run = caption(images=pictures, out=tmp_path / "run", model=tiny_llava, **SMALL)  # type: ignore[arg-type]
    after = run.sql("SELECT key, caption FROM captions ORDER BY key").rows()
    assert run.status().remaining == 0 and len(after) == 6 and [row for row in after if row in before] == before
    assert [row["key"] for row in after] == [path.stem for path in pictures]
    assert open_run(tmp_path / "run").images([after[0]["key"]])[0].size == (48, 40)


def test_a_run_with_too_many_rejected_images_raises_and_keeps_the_rest(tiny_llava: Path, tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / "images", count=3)
    (folder / "broken.jpg").write_text("no image")
    options: dict[str, Any] = {"images": folder, "out": tmp_path / "run", "model": tiny_llava, "max_rejected": 0.0, **SMALL}
    with pytest.raises(UserError, match="has reached its limit of rejected images or of cost: see the line above"):
        caption(**options)
    run = open_run(tmp_path / "run")
    assert run.sql("SELECT key, reason FROM rejected").rows() == [{"key": "broken", "reason": "not_an_image"}]
    assert run.status().captioned == 3


def test_options_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"images": ["a"], "out": "b"}, "--model is missing: type --model llava"),
        ({"images": ["a"], "out": "b", "model": "mini", "engine": "vlm"}, "engine must be one of transformers, vllm, endpoint"),
        ({"images": tmp_path / "nothing", "out": tmp_path / "b", "model": "mini"}, "nothing"),
        ({"images": [3], "out": "b", "model": "mini"}, "--images: expected a list, each text, found 3"),
    ]
    for options, message in cases:
        with pytest.raises(UserError, match=message):
            caption(**options)


def test_prompts_and_cleaning_are_those_of_the_command() -> None:
    assert load_prompts("paper") is PROMPT_SETS["paper"]
    found = clean_caption("The image shows a red owl. It sits on a", finish_reason="length")
    assert (found.status, found.caption) == ("ok", "A red owl.") or "sits" not in found.caption
