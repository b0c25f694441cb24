"""GenEval's rules against cases worked out by hand, its prompts' file, and the whole way with small random models."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from examples.openmoji.stand_ins import write_clip, write_owlv2
from foundry.command_line import run_command
from foundry.errors import UserError
from model.generation.image_files import image_names
from trainer import evaluate
from trainer.evaluation.benchmark import Prompt, Score
from trainer.evaluation.benchmarks.geneval import ColorNames, ObjectJudge, mean_over_tasks, mistakes, positions
from trainer.evaluation.benchmarks.geneval_prompts import COLORS, TASKS, asked_of, our_prompts, read_prompts
from trainer.evaluation.config import EvaluateConfig, GenEvalConfig
from trainer.evaluation.judges.detector import Box, Detection

GRAY = np.zeros((100, 100, 3), dtype=np.uint8)


def _box(x: float, y: float, *, side: float = 10) -> Box:
    return Box(left=x - side / 2, top=y - side / 2, right=x + side / 2, bottom=y + side / 2)


def _found(name: str, *places: tuple[float, float], confidence: float = 0.9) -> list[Detection]:
    return [Detection(name=name, confidence=confidence - place / 100, box=_box(*at)) for place, at in enumerate(places)]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (_box(20, 50), _box(60, 50), {"left of"}),
        (_box(60, 50), _box(20, 50), {"right of"}),
        (_box(50, 20), _box(50, 60), {"above"}),
        (_box(50, 60), _box(50, 20), {"below"}),
        (_box(20, 20), _box(60, 60), {"left of", "above"}),  # (40 - 2) / 56.6 = .67 in both directions
        (_box(50, 50), _box(52, 50), set()),  # .1 of both widths: 2 px
        (_box(50, 50), _box(53.9, 50), set()),  # 1.9 / 3.9 is below a half
        (_box(50, 50), _box(54.1, 50), {"left of"}),
        (_box(50, 50), _box(50, 50), set()),
    ],
)
def test_positions(first: Box, second: Box, expected: set[str]) -> None:
    assert positions(first, second) == expected


OWL, DRUM = {"class": "owl", "count": 1}, {"class": "drum", "count": 1}
LEFT = {**OWL, "position": ["left of", 0]}


@pytest.mark.parametrize(
    ("data", "found", "expected"),
    [
        ({"include": [OWL]}, {"owl": _found("owl", (1, 1))}, []),
        ({"include": [OWL]}, {"drum": _found("drum", (1, 1))}, ["1 of owl wanted, 0 found"]),
        ({"include": [OWL, DRUM]}, {"owl": _found("owl", (1, 1))}, ["1 of drum wanted, 0 found"]),
        (
            {"include": [{**OWL, "count": 2}], "exclude": [{**OWL, "count": 3}]},
            {"owl": _found("owl", (10, 10), (40, 40))},
            [],
        ),
        (
            {"include": [{**OWL, "count": 2}], "exclude": [{**OWL, "count": 3}]},
            {"owl": _found("owl", (10, 10), (40, 40), (80, 80))},
            ["fewer than 3 of owl wanted, 3 found"],
        ),
        ({"include": [{**OWL, "color": "red"}]}, {"owl": _found("owl", (10, 10))}, []),
        ({"include": [{**OWL, "color": "blue"}]}, {"owl": _found("owl", (10, 10))}, ["owl is red, not blue"]),
        # Only the surest owl counts, and that is the red one on the left half.
        ({"include": [{**OWL, "color": "blue"}]}, {"owl": _found("owl", (10, 10), (80, 10))}, ["owl is red, not blue"]),
        ({"include": [DRUM, LEFT]}, {"owl": _found("owl", (10, 50)), "drum": _found("drum", (80, 50))}, []),
        (
            {"include": [DRUM, LEFT]},
            {"owl": _found("owl", (80, 50)), "drum": _found("drum", (10, 50))},
            ["owl is not left of drum"],
        ),
        (
            {"include": [DRUM, LEFT]},
            {"owl": _found("owl", (10, 50))},
            ["1 of drum wanted, 0 found", "nothing for owl to be left of"],
        ),
    ],
)
def test_what_is_wrong_with_an_image(
    data: Mapping[str, Any], found: Mapping[str, list[Detection]], expected: list[str]
) -> None:
    def red_on_the_left(name: str, boxes: Sequence[Box]) -> list[str]:
        return ["red" if box.centre[0] < 50 else "blue" for box in boxes]

    assert mistakes(found, asked_of(data), red_on_the_left) == expected


def test_counting_has_a_threshold_of_its_own_and_repeated_boxes_are_one() -> None:
    def detect(image: npt.NDArray[np.uint8], names: Sequence[str]) -> list[Detection]:
        return [
            Detection(name="owl", confidence=0.9, box=_box(20, 20)),
            Detection(name="owl", confidence=0.8, box=_box(21, 20)),
            Detection(name="owl", confidence=0.25, box=_box(80, 80)),
        ]

    judge = ObjectJudge(detect, lambda *_: [], GenEvalConfig())  # type: ignore[arg-type]
    data = {"include": [{**OWL, "count": 2}]}
    counting, other = judge([GRAY, GRAY], [Prompt(text="x", category=task, data=data) for task in ("counting", "two_object")])
    assert (counting.values, other.values) == ({"correct": 0.0}, {"correct": 1.0})
    assert counting.seen == "2 of owl wanted, 1 found (owl 0.90)"
    assert other.seen == "right (owl 0.90, owl 0.25)"


class _FixedClip:
    """In place of CLIP: an image's and a text's embedding is the direction of the colour in it."""

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.stack([self._direction(next(color for color in COLORS if color in text)) for text in texts])

    def embed_images(self, images: Sequence[npt.NDArray[np.uint8]]) -> torch.Tensor:
        names = {(255, 0, 0): "red", (0, 0, 255): "blue", (255, 255, 255): "white"}
        return torch.stack([self._direction(names[tuple(image.reshape(-1, 3).mean(axis=0).astype(int))]) for image in images])

    def _direction(self, color: str) -> torch.Tensor:
        return torch.eye(len(COLORS))[COLORS.index(color)]


def test_colours_are_those_inside_the_boxes() -> None:
    image = np.full((100, 100, 3), 255, dtype=np.uint8)
    image[10:20, 10:20], image[50:60, 70:80] = (255, 0, 0), (0, 0, 255)
    colors = ColorNames(_FixedClip())  # type: ignore[arg-type]
    boxes = [_box(15, 15), _box(75, 55), _box(40, 40), Box(left=-5, top=-5, right=0.5, bottom=0.5)]
    assert colors(image, "owl", boxes) == ["red", "blue", "white", "white"]


def test_the_overall_score_is_the_mean_over_tasks() -> None:
    scores = [
        Score(category="counting", judge="detector", metric="correct", num_images=30, value=0.2),
        Score(category="colors", judge="detector", metric="correct", num_images=10, value=0.8),
    ]
    (overall,) = mean_over_tasks(scores)
    assert (overall.category, overall.num_images) == ("overall", 40)
    assert overall.value == pytest.approx(0.5)


def test_prompts_of_the_users_own_copy(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    rows = [
        {"tag": "single_object", "include": [OWL], "prompt": "a photo of an owl"},
        {"tag": "position", "include": [DRUM, LEFT], "prompt": "a photo of an owl left of a drum"},
    ]
    (tmp_path / "prompts" / "evaluation_metadata.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    prompts = read_prompts(tmp_path)
    assert prompts == read_prompts(tmp_path / "prompts")
    assert [(prompt.category, prompt.text, prompt.data["include"]) for prompt in prompts] == [
        (row["tag"], row["prompt"], row["include"]) for row in rows
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("no json", "line 2: not a prompt of GenEval"),
        ('{"tag": "feelings", "include": [], "prompt": "x"}', "line 2: not a prompt of GenEval.*tag feelings"),
        ('{"tag": "colors", "prompt": "x"}', "line 2: not a prompt of GenEval.*include"),
        ('{"tag": "colors", "include": [], "prompt": "x"}', "nothing to include"),
        ('{"tag": "colors", "include": [{"class": "owl", "count": 1, "color": "mauve"}], "prompt": "x"}', "color mauve"),
        (
            '{"tag": "position", "include": [{"class": "owl", "count": 1, "position": ["above", 0]}], "prompt": "x"}',
            r"position \['above', 0\]",
        ),
        ("[]", "line 2: not a prompt of GenEval"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    good = {"tag": "single_object", "include": [OWL], "prompt": "a photo of an owl"}
    (tmp_path / "evaluation_metadata.jsonl").write_text(f"{json.dumps(good)}\n{line}\n")
    with pytest.raises(UserError, match=complaint):
        read_prompts(tmp_path)


def test_an_incomplete_copy_says_which_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prompts/evaluation_metadata.jsonl does not exist"):
        read_prompts(tmp_path)


def test_our_own_prompts_are_of_every_task() -> None:
    assert {prompt.category for prompt in our_prompts()} == set(TASKS)
    for prompt in our_prompts():
        assert all(name in prompt.text for name in asked_of(prompt.data).names)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stand_ins")
    write_owlv2(folder)
    write_clip(folder)
    return folder


def test_the_whole_way_from_the_command_line(models: Path, tmp_path: Path) -> None:
    texts = list(dict.fromkeys(prompt.text for prompt in our_prompts()))
    (tmp_path / "images").mkdir()
    for place, name in enumerate(image_names(texts, [0] * len(texts))):
        noise = np.random.default_rng(place).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / name)
    argv = [
        "--benchmark=geneval",
        f"--geneval.detector={models / 'owlv2'}",
        f"--geneval.clip={models / 'clip'}",
        f"--images={tmp_path / 'images'}",
        f"--out={tmp_path / 'out'}",
        "--num_images_per_prompt=1",
        "--geneval.threshold=0",
        "--geneval.counting_threshold=0",
    ]
    assert run_command(EvaluateConfig, evaluate.main, prog="python -m trainer.evaluate", example="", argv=argv) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["benchmark"] == "geneval-owlv2"
    by_category = {one["category"]: one for one in summary["scores"]}
    assert set(by_category) == {*TASKS, "all prompts", "overall"}
    tasks = [by_category[task]["value"] for task in TASKS]
    assert by_category["overall"]["value"] == pytest.approx(sum(tasks) / 6)
    assert by_category["overall"]["published"]["value"] == 0.48
    assert any("in place of Mask2Former" in text for text in by_category["overall"]["published"]["differences"])
