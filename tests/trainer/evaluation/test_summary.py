"""Figures of the big benchmarks: several images per prompt, shared ones, derived figures, published ones to compare with."""

import json
import re
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from foundry.command_line import run_command
from model.generation.image_files import image_names
from tests.model.tiny_parts import save_tiny_checkpoint
from tests.trainer import rich_benchmark
from tests.trainer.toy_benchmark import gray
from trainer import evaluate
from trainer.evaluation.config import EvaluateConfig

LEVELS = {("an owl", 0): 51, ("an owl", 1): 0, ("a bat", 0): 102, ("a bat", 1): 204}


@pytest.fixture(autouse=True)
def _rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rich_benchmark, "stops_at", [])


@pytest.fixture
def gray_images(tmp_path: Path) -> Path:
    """Two images of each text: the two prompts of a bat share theirs."""
    folder = tmp_path / "gray"
    folder.mkdir()
    for (text, seed), level in LEVELS.items():
        Image.fromarray(gray(level)).save(folder / image_names([text], [seed])[0])
    return folder


def _run(*arguments: object) -> int:
    argv = ["--benchmark=tests.trainer.rich_benchmark", *map(str, arguments)]
    return run_command(EvaluateConfig, evaluate.main, prog="python -m trainer.evaluate", example="", argv=argv)


def test_figures_are_those_worked_out_by_hand(gray_images: Path, tmp_path: Path) -> None:
    assert _run(f"--images={gray_images}", f"--out={tmp_path / 'out'}") == 0
    scores = json.loads((tmp_path / "out" / "summary.json").read_text())["scores"]
    found = {(one["category"], one["judge"], one["metric"]): (one["num_images"], one["value"]) for one in scores}
    animals = (0.2 / 0.25 + 0 + 0.4 / 0.5 + 0.8 / 0.5) / 4
    assert found == {
        ("animals", "level", "level"): (4, pytest.approx(animals)),
        ("tools", "half", "half"): (2, pytest.approx((0.4 + 0.8) / 2 / 2)),
        ("all prompts", "level", "level"): (6, pytest.approx((4 * animals + 1.2) / 6)),
        ("all prompts", "tools", "level"): (2, pytest.approx(0.6)),
        ("all prompts", "half", "half"): (2, pytest.approx(0.3)),
        ("all prompts", "mean_brightness", "mean_brightness"): (4, pytest.approx((0.2 + 0 + 0.4 + 0.8) / 4)),
        ("overall", "all", "score"): (6, pytest.approx(0.75 * animals + 0.25 * 0.3)),
    }


def test_published_figures_are_next_to_ours_with_what_forbids_comparing(gray_images: Path, tmp_path: Path) -> None:
    _run(f"--images={gray_images}", f"--out={tmp_path / 'out'}")
    lines = (tmp_path / "out" / "summary.md").read_text().splitlines()
    # The prompts' means are .4 and 1.2, of two images each: ± is .8 / 2^.5 / 2^.5. A single prompt has none.
    assert "| animals (level) | level | 4 | 0.800 ± 0.400 | 0.750 | with care: other owls |" in lines
    assert "| tools (half) | half | 2 | 0.300 | 0.500 | no: another judge |" in lines
    assert "| overall (score) | all | 6 | 0.675 | 0.900 | yes |" in lines
    assert {"published: Owl 1", "published: Owl 2"} <= set(lines)
    judges = json.loads((tmp_path / "out" / "summary.json").read_text())["judges"]
    assert judges == {"level": "1", "tools": "1", "mean_brightness": "by bytes"}
    page = (tmp_path / "out" / "page.html").read_text()
    assert "no: another judge" in page and "published: Owl 1; published: Owl 2" in page
    assert "ceiling" not in page
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    found = {(row["category"], row["metric"]): (row["published"], row["comparable"]) for row in rows}
    assert found == {
        ("animals", "level"): (0.75, "with care: other owls"),
        ("tools", "level"): (None, None),
        ("tools", "half"): (0.5, "no: another judge"),
    }


def test_another_number_of_images_forbids_comparing(gray_images: Path, tmp_path: Path) -> None:
    assert _run(f"--images={gray_images}", f"--out={tmp_path / 'out'}", "--num_images_per_prompt=1") == 0
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "| overall (score) | all | 6 | 0.650 | 0.900 | no: 1 images of a prompt in place of 2 |" in text


def test_prompts_of_one_text_share_images_and_have_verdicts_of_their_own(gray_images: Path, tmp_path: Path) -> None:
    _run(f"--images={gray_images}", f"--out={tmp_path / 'out'}")
    verdicts = [json.loads(line) for line in (tmp_path / "out" / "verdicts" / "level.jsonl").read_text().splitlines()]
    assert [(one["prompt"], one["seed"]) for one in verdicts] == [
        (text, seed) for text in ("an owl", "a bat", "a bat") for seed in (0, 1)
    ]
    assert [one["values"]["level"] for one in verdicts] == pytest.approx([0.8, 0, 0.8, 1.6, 0.4, 0.8])
    page = (tmp_path / "out" / "page.html").read_text()
    assert re.findall(r"<h3>(.*?)</h3>", page)[-2:] == ["a bat (seed 0)", "a bat (seed 1)"]


def test_each_verdict_is_kept_as_it_comes(gray_images: Path, tmp_path: Path) -> None:
    rich_benchmark.stops_at.append("a bat")
    assert _run(f"--images={gray_images}", f"--out={tmp_path / 'out'}") == 130
    kept = (tmp_path / "out" / "verdicts" / "level.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in kept] == ["an owl", "an owl"]


def test_shared_images_are_drawn_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "tiny")
    assert _run(f"--checkpoint={checkpoint}", f"--out={tmp_path / 'out'}", "--sampling.num_inference_steps=2") == 0
    assert "4 images drawn" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out" / "images").iterdir()} == {
        image_names([text], [seed])[0] for text, seed in LEVELS
    }


@pytest.mark.slow
def test_workers_draw_the_same_images_and_resume_where_others_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers draw half of what one process drew; that half was deleted."""
    monkeypatch.chdir(tmp_path)  # a relative folder means the same to workers, which start elsewhere
    checkpoint = save_tiny_checkpoint(Path("tiny"))
    arguments = ("--sampling.num_inference_steps=2", "--runtime.batch_size=1", "--num_images_per_prompt=8")
    run = partial(_run, f"--checkpoint={checkpoint}", "--out=out", *arguments)
    assert run() == 0
    drawn = {path.name: path.read_bytes() for path in Path("out", "images").iterdir()}
    lost = sorted(drawn)[::2]
    for name in lost:
        Path("out", "images", name).unlink()
    capsys.readouterr()
    assert run("--num_workers=2") == 0
    assert f"{len(lost)} images drawn" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in Path("out", "images").iterdir()} == drawn
