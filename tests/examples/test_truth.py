"""The judge of captions: the truth scores 1, and each kind of error costs the figure that is meant to see it."""

import random
from pathlib import Path

import pytest

from examples.openmoji.composition import Relation, draw_scene
from examples.openmoji.descriptions import Texts, describe
from examples.openmoji.held_out import SPLITS
from examples.openmoji.scene_files import TRUTH_FILE, SceneSet, write_scenes
from examples.openmoji.truth import CaptionFigures, TrueObject, Truth, judge, read_caption, read_truths, truth_of

OWL_AND_KEYS = Truth(
    objects=(
        TrueObject(kind="owl", size="large", place="top left"),
        TrueObject(kind="key", size="small", place="top right"),
        TrueObject(kind="key", size="large", place="bottom"),
    ),
    background_color="pink",
    pattern="striped",
    relation=None,
)
TRUE_CAPTION = (
    "The image features three objects. A large owl, a gray bird, is at the top left. In the top right corner there is a small "
    "key. A large key is at the bottom. The background is striped pink."
)


def _described(count: int = 600) -> tuple[list[Texts], list[Truth]]:
    scenes = [draw_scene(seed=11, index=index, split=SPLITS[index % 2]) for index in range(count)]
    return [describe(scene, seed=11) for scene in scenes], [truth_of(scene) for scene in scenes]


def _judge_one(caption: str, truth: Truth = OWL_AND_KEYS) -> CaptionFigures:
    return judge([caption], [truth])


def test_true_dense_descriptions_score_one_in_everything() -> None:
    texts, truths = _described()
    figures = judge([text.dense for text in texts], truths)
    rates = (figures.object_precision, figures.object_recall, figures.object_f1, figures.background, figures.place)
    assert (*rates, figures.size, figures.relation) == (1.0,) * 7
    assert figures.hallucination_rate == 0.0


def test_shorter_descriptions_are_true_in_what_they_say() -> None:
    texts, truths = _described()
    medium, short = judge([text.medium for text in texts], truths), judge([text.short for text in texts], truths)
    assert medium.object_f1 == short.object_f1 == 1.0
    assert medium.background == 1.0 and short.background == 0.0
    assert medium.place == short.place == 0.0


def test_the_order_of_sentences_does_not_matter() -> None:
    texts, truths = _described(200)
    shuffled = []
    for text in texts:
        sentences = text.dense.rstrip(".").split(". ")
        random.Random(0).shuffle(sentences)
        shuffled.append(". ".join(sentences) + ".")
    figures = judge(shuffled, truths)
    assert figures.object_f1 == figures.background == figures.place == figures.relation == 1.0


def test_captions_of_other_scenes_score_low() -> None:
    texts, truths = _described()
    figures = judge([text.dense for text in texts], truths[1:] + truths[:1])
    assert figures.object_f1 < 0.15 and figures.background < 0.1 and figures.place < 0.4
    assert figures.hallucination_rate > 0.9


def test_the_example_is_true() -> None:
    figures = _judge_one(TRUE_CAPTION)
    assert figures.object_f1 == figures.background == figures.place == figures.size == 1.0


@pytest.mark.parametrize(
    ("old", "new", "figure", "value"),
    [
        ("A large owl, a gray bird,", "A large penguin, a gray bird,", "object_recall", 2 / 3),
        ("A large owl, a gray bird,", "A large penguin, a gray bird,", "object_precision", 2 / 3),
        ("A large owl, a gray bird,", "A large penguin, a gray bird,", "hallucination_rate", 1.0),
        (" A large key is at the bottom.", "", "object_recall", 2 / 3),
        (" A large key is at the bottom.", "", "hallucination_rate", 0.0),
        ("is at the bottom", "is at the bottom left", "place", 2 / 3),
        ("at the top left", "nowhere", "place", 2 / 3),
        ("A large owl", "A small owl", "size", 2 / 3),
        ("striped pink", "striped red", "background", 0.0),
        ("striped pink", "dotted pink", "background", 0.0),
        ("striped pink", "pink", "background", 0.0),
        ("striped pink", "striped pink and blue", "background", 0.0),
        ("The background is striped pink.", "", "background", 0.0),
        (TRUE_CAPTION, "", "object_f1", 0.0),
    ],
)
def test_an_error_costs_the_figure_that_sees_it(old: str, new: str, figure: str, value: float) -> None:
    assert old in TRUE_CAPTION
    assert getattr(_judge_one(TRUE_CAPTION.replace(old, new)), figure) == pytest.approx(value)


def test_an_object_too_many_costs_precision_but_is_no_absent_kind() -> None:
    figures = _judge_one(TRUE_CAPTION.replace("A large owl", "A large owl is at the left. A large owl"))
    assert figures.object_precision == pytest.approx(3 / 4) and figures.object_recall == 1.0
    assert figures.hallucination_rate == 0.0


def test_places_swapped_between_kinds_are_wrong() -> None:
    swapped = TRUE_CAPTION.replace("at the top left", "in the top right corner").replace(
        "In the top right", "At the top left", 1
    )
    assert _judge_one(swapped).place < 1.0


def test_relations_are_held_against_the_places() -> None:
    truth = Truth(
        objects=(TrueObject(kind="owl", size="large", place="left"), TrueObject(kind="fox", size="small", place="right")),
        background_color="red",
        pattern="plain",
        relation=Relation(subject="owl", relation="left of", other="fox"),
    )
    said = {
        "The owl is to the left of the fox.": 1.0,
        "The fox is to the right of the owl.": 1.0,
        "The owl is to the right of the fox.": 0.0,
        "The owl is above the fox.": 0.0,
        "An owl and a fox.": 0.0,
        "The owl is to the left of the fox. The owl is below the fox.": 0.0,
    }
    assert {caption: _judge_one(caption, truth).relation for caption in said} == said


@pytest.mark.parametrize(
    ("caption", "counts"),
    [
        ("an owl and two keys", {"owl": 1, "key": 2}),
        ("Two fish and a fox", {"fish": 2, "fox": 1}),
        ("three foxes", {"fox": 3}),
        ("owls", {"owl": 2}),
        ("two owls: a large owl, and a small owl", {"owl": 2}),
        ("An owl. The owl is above the key.", {"owl": 1, "key": 1}),
        ("a large gray owl, a monkey", {"owl": 1}),
        ("a keyboard and fishing", {}),
    ],
)
def test_counting(caption: str, counts: dict[str, int]) -> None:
    assert read_caption(caption).counts == counts


def test_captions_and_ground_truths_must_pair_up() -> None:
    with pytest.raises(ValueError, match="one truth for each caption"):
        judge(["an owl"], [])


def test_ground_truths_are_read_back_from_the_file(tmp_path: Path) -> None:
    wanted = SceneSet(count=20, seed=5, split="unseen", single_objects=False, num_kinds=None, format="parquet")
    write_scenes(wanted, tmp_path / "out")
    truths = read_truths(str(tmp_path / "out" / TRUTH_FILE))
    expected = [truth_of(draw_scene(seed=5, index=index, split="unseen")) for index in range(20)]
    assert list(truths.values()) == expected
    assert list(truths)[:2] == ["unseen-5-0000000", "unseen-5-0000001"]
