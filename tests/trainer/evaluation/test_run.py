"""Evaluation: the figures are the ones worked out by hand, an interrupted one resumes, and a mixed-up one is refused."""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from foundry.command_line import run_command
from foundry.errors import UserError
from model.generation.image_files import image_names
from model.generation.pipeline import Pipeline
from tests.model.tiny_parts import save_tiny_checkpoint
from tests.trainer import toy_benchmark
from trainer import evaluate
from trainer.evaluation.benchmark import Prompt, Verdict
from trainer.evaluation.config import EvaluateConfig
from trainer.evaluation.frechet import frechet_distance
from trainer.evaluation.images import DrawnImage

LEVELS = {"a red owl": 51, "a blue key": 255, "the large owl": 0}


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_benchmark, "asked", [])
    monkeypatch.setattr(toy_benchmark, "stops_after", [])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def gray_images(tmp_path: Path) -> Path:
    """An image of one level of gray for each prompt, as somebody else may have drawn them."""
    folder = tmp_path / "gray"
    folder.mkdir()
    for name, level in zip(image_names(list(LEVELS), [0] * 3), LEVELS.values(), strict=True):
        Image.fromarray(toy_benchmark.gray(level)).save(folder / name)
    return folder


def _run(*arguments: object) -> int:
    argv = ["--benchmark=tests.trainer.toy_benchmark", *map(str, arguments)]
    return run_command(EvaluateConfig, evaluate.main, prog="python -m trainer.evaluate", example="", argv=argv)


def _draw(checkpoint: Path, out: Path, *arguments: object) -> int:
    return _run(f"--checkpoint={checkpoint}", f"--out={out}", "--sampling.num_inference_steps=2", *arguments)


def test_a_png_with_a_long_text_is_judged_and_no_image_is_one_line(gray_images: Path) -> None:
    path = next(iter(sorted(gray_images.iterdir())))
    drawn = DrawnImage(path=path, prompt=Prompt(text="", category=""), seed=0)
    before = drawn.pixels()
    info = PngInfo()
    info.add_text("workflow", "x" * (3 << 20), zip=True)  # Pillow reads no more than 1 MiB
    Image.fromarray(before).save(path, pnginfo=info)
    assert np.array_equal(drawn.pixels(), before)
    path.write_bytes(b"no image")
    with pytest.raises(UserError, match=f"{path.name} cannot be read as an image .*: draw it again"):
        drawn.pixels()


def test_figures_are_those_worked_out_by_hand(gray_images: Path, tmp_path: Path) -> None:
    assert _run(f"--images={gray_images}", f"--out={tmp_path / 'out'}") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    found = {
        (score["category"], score["metric"]): (score["value"], score["held_out"], score["ceiling"])
        for score in summary["scores"]
    }
    assert found == {
        ("bright", "brightness"): pytest.approx((0.6, 1.0, 1.0)),
        ("dark", "darkness"): (1.0, None, 0.0),
        ("all prompts", "brightness"): pytest.approx((0.4, 1.0, 1.0)),
        ("all prompts", "darkness"): pytest.approx((0.6, 0.0, 0.0)),
    }
    # Levels 51, 255, 0 against 255 three times: the means are 153 apart, and only the first set varies.
    (distance,) = summary["distances"]
    assert distance["value"] == pytest.approx(153**2 + np.var([51, 255, 0], ddof=1))
    # 255 less the lengths 9, 10, 13 of the prompts.
    assert distance["between_true"] == pytest.approx((32 / 3) ** 2 + np.var([9, 10, 13], ddof=1))


def test_the_standard_error_is_that_of_the_mean(gray_images: Path, tmp_path: Path) -> None:
    _run(f"--images={gray_images}", f"--out={tmp_path / 'out'}")
    scores = json.loads((tmp_path / "out" / "summary.json").read_text())["scores"]
    bright = next(score for score in scores if score["category"] == "bright")
    assert bright["standard_error"] == pytest.approx(np.std([0.2, 1.0], ddof=1) / 2**0.5)
    assert (bright["num_held_out"], bright["held_out_error"]) == (1, None)


def test_prompts_may_have_seeds_of_their_own(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = toy_benchmark.open_benchmark
    monkeypatch.setattr(toy_benchmark, "open_benchmark", lambda config: replace(shared(config), own_seeds=True))
    assert _draw(checkpoint, tmp_path / "out", "--num_images_per_prompt=2", "--seed=5") == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "prompts.jsonl").read_text().splitlines()]
    names = [image_names([row["text"]] * 2, seeds) for row, seeds in zip(rows, [(5, 6), (7, 8), (9, 10)], strict=True)]
    assert [row["images"] for row in rows] == names
    drawn = sorted(path.name for path in (tmp_path / "out" / "images").iterdir())
    assert drawn == sorted(itertools.chain.from_iterable(names))
    with Image.open(tmp_path / "out" / "images" / names[1][0]) as image:
        assert image.text["seed"] == "7"  # type: ignore[attr-defined]


def test_results_have_a_row_for_each_image_and_metric(gray_images: Path, tmp_path: Path) -> None:
    _run(f"--images={gray_images}", f"--out={tmp_path / 'out'}")
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert len(rows) == (3 + 3) * 2
    row = next(row for row in rows if row["prompt"] == "a blue key" and row["images"] == "generated")
    assert row == {
        "benchmark": "toy",
        "images": "generated",
        "category": "bright",
        "prompt": "a blue key",
        "rewritten_prompt": None,
        "held_out": True,
        "seed": 0,
        "judge": "brightness",
        "metric": "brightness",
        "value": 1.0,
        "seen": "gray 1.00",
        "published": None,
        "comparable": None,
    }


def test_the_page_shows_the_worst_first_and_fetches_nothing(gray_images: Path, tmp_path: Path) -> None:
    _run(f"--images={gray_images}", f"--out={tmp_path / 'out'}")
    text = (tmp_path / "out" / "page.html").read_text()
    assert re.findall(r"<h3>(.*?)</h3>", text) == [
        "a red owl (seed 0)",
        "a blue key (seed 0, held out)",
        "the large owl (seed 0)",
    ]
    assert "the ceiling is the score of true images by the same judge" in text
    assert not re.findall(r"https?://|src=\"(?!data:)", text)


def test_an_interrupted_drawing_resumes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert _draw(checkpoint, whole, "--num_images_per_prompt=2") == 0
    stream = Pipeline.stream

    def interrupted(*arguments: object, **settings: object) -> Iterator[object]:
        images = stream(*arguments, **settings)  # type: ignore[arg-type]
        yield from (next(images) for _ in range(2))
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "stream", interrupted)
    assert _draw(checkpoint, broken, "--num_images_per_prompt=2") == 130
    drawn = {path.name: path.stat().st_mtime_ns for path in (broken / "images").iterdir()}
    assert len(drawn) == 2
    monkeypatch.undo()
    capsys.readouterr()
    assert _draw(checkpoint, broken, "--num_images_per_prompt=2") == 0
    assert "4 images drawn" in capsys.readouterr().out
    assert {name: (broken / "images" / name).stat().st_mtime_ns for name in drawn} == drawn
    for name in ("summary.json", "summary.md"):
        assert (broken / name).read_text() == (whole / name).read_text()


def test_an_interrupted_judge_is_not_asked_twice(gray_images: Path, tmp_path: Path) -> None:
    arguments = (f"--images={gray_images}", f"--out={tmp_path / 'out'}", "--judge_batch_size=2")
    toy_benchmark.stops_after.append(3)
    assert _run(*arguments) == 130
    toy_benchmark.stops_after.clear()
    toy_benchmark.asked.clear()
    verdicts = tmp_path / "out" / "verdicts" / "brightness.jsonl"
    verdicts.write_text(verdicts.read_text() + '{"key": "cut o')  # as a kill in mid-line leaves it
    assert _run(*arguments) == 0
    # The last two are true images; that of "a blue key" is the one drawn, and judged already.
    assert toy_benchmark.asked == ["the large owl", "a red owl", "the large owl"]
    assert len([json.loads(line) for line in verdicts.read_text().splitlines()]) == 5
    toy_benchmark.asked.clear()
    assert _run(*arguments) == 0
    assert toy_benchmark.asked == []


def test_a_judge_whose_memory_runs_out_is_asked_in_halves_and_about_nothing_twice(
    gray_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run(f"--images={gray_images}", f"--out={tmp_path / 'whole'}") == 0
    judge, embed = toy_benchmark.judge, toy_benchmark.embed
    toy_benchmark.asked.clear()

    def some_then_none(images: list[np.ndarray], prompts: list[Prompt]) -> Iterator[Verdict]:
        for image, prompt in zip(images, prompts, strict=True):
            if len(images) > 2 and prompt.category == "dark":
                raise torch.OutOfMemoryError("CUDA out of memory")
            yield from judge([image], [prompt])

    def few(images: list[np.ndarray]) -> np.ndarray:
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return embed(images)

    monkeypatch.setattr(toy_benchmark, "judge", some_then_none)
    monkeypatch.setattr(toy_benchmark, "embed", few)
    assert _run(f"--images={gray_images}", f"--out={tmp_path / 'halves'}") == 0
    for name in ("summary.json", "summary.md"):
        assert (tmp_path / "halves" / name).read_text() == (tmp_path / "whole" / name).read_text()
    # Those of true images come last; that of "a blue key" is the one drawn.
    assert toy_benchmark.asked == ["a red owl", "a blue key", "the large owl", "a red owl", "the large owl"]


def test_a_changed_image_is_judged_again(gray_images: Path, tmp_path: Path) -> None:
    arguments = (f"--images={gray_images}", f"--out={tmp_path / 'out'}")
    _run(*arguments)
    toy_benchmark.asked.clear()
    Image.fromarray(toy_benchmark.gray(102)).save(gray_images / image_names(["a red owl"], [0])[0])
    assert _run(*arguments) == 0
    assert toy_benchmark.asked == ["a red owl"]
    scores = json.loads((tmp_path / "out" / "summary.json").read_text())["scores"]
    assert scores[0]["value"] == pytest.approx((0.4 + 1.0) / 2)


def test_images_of_a_checkpoint_score_alike_as_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    _draw(checkpoint, tmp_path / "drawn")
    assert _run(f"--images={tmp_path / 'drawn' / 'images'}", f"--out={tmp_path / 'scored'}") == 0
    assert (tmp_path / "scored" / "summary.json").read_text() == (tmp_path / "drawn" / "summary.json").read_text()


def test_the_file_of_prompts_names_the_images_that_are_looked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (f"--images={tmp_path / 'theirs'}", f"--out={tmp_path / 'out'}", "--num_images_per_prompt=2")
    assert _run(*arguments) == 2
    assert f"draw them from {tmp_path / 'out' / 'prompts.jsonl'}, which names them" in _complaint(capsys)
    (tmp_path / "theirs").mkdir()
    for line in (tmp_path / "out" / "prompts.jsonl").read_text().splitlines():
        for name in json.loads(line)["images"]:
            Image.fromarray(toy_benchmark.gray(51)).save(tmp_path / "theirs" / name)
    assert _run(*arguments) == 0


def _complaint(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_a_folder_of_another_evaluation_is_refused(
    gray_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(f"--images={gray_images}", f"--out={tmp_path / 'out'}")
    capsys.readouterr()
    assert _run(f"--images={gray_images}", f"--out={tmp_path / 'out'}", "--seed=1") == 2
    assert "holds another evaluation (seed differ)" in _complaint(capsys)
    assert _run(f"--images={gray_images}", f"--out={gray_images}") == 2
    assert "holds other files" in _complaint(capsys)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--images=nowhere", "--out={out}"), "3 of 3 images are not in nowhere, the first: a-red-owl-s0.png"),
        (("--checkpoint={out}", "--out={out}/new"), "expected a checkpoint (transformer/ and pipeline.json)"),
        (("--images=nowhere", "--out={out}", "--benchmark=nothing"), "benchmark must be one of t2i_compbench, geneval"),
        (("--images=nowhere", "--out={out}", "--benchmark=tests.nothing"), "needs tests.nothing, which is not installed"),
        (("--images=nowhere", "--out={out}", "--benchmark=tests.ray_nodes"), "a module with the function open_benchmark"),
        (("--images=nowhere", "--out={out}", "--judges", "clip"), "toy has no judge clip: it has brightness (--judges)"),
        (("--out={out}",), "give either checkpoint or images"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    assert _run(*(argument.format(out=tmp_path / "out") for argument in arguments)) == 2
    assert complaint in _complaint(capsys)


def test_an_image_that_cannot_be_read_is_named(gray_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = image_names(["a red owl"], [0])[0]
    (gray_images / name).write_bytes(b"no image")
    assert _run(f"--images={gray_images}", f"--out={tmp_path / 'out'}") == 2
    assert name in _complaint(capsys)


def test_frechet_distance_of_two_normal_sets() -> None:
    # Means 0 and 3, variances 1 and 4: 9 + 1 + 4 - 2 * 2.
    unit = np.array([-1.0, 1.0]) / np.sqrt(2)
    assert frechet_distance(unit[:, None], 3 + 2 * unit[:, None]) == pytest.approx(10.0)


def test_frechet_distance_equals_the_formula_with_a_matrix_root() -> None:
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 5)), rng.normal(size=(30, 5)) @ rng.normal(size=(5, 5)) + 1
    covariances = np.cov(a.T), np.cov(b.T)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(
        sum(covariances) - 2 * sqrtm(covariances[0] @ covariances[1]).real
    )
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(a, a[::-1]) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a[:3], a[:3] + 1) == pytest.approx(5.0)  # fewer images than features


def test_frechet_distance_needs_two_images() -> None:
    with pytest.raises(ValueError, match="two images"):
        frechet_distance(np.zeros((1, 2)), np.zeros((2, 2)))
