"""The prompts of the benchmark: they say what they are marked with, their own scenes fulfil them, and each error is told."""

import dataclasses
import itertools
from collections import Counter

import pytest

from examples.openmoji.checks import CHECKS, check, stands
from examples.openmoji.composition import Relation
from examples.openmoji.descriptions import describe
from examples.openmoji.held_out import SPLITS, is_held_out
from examples.openmoji.kinds import KIND_NAMES
from examples.openmoji.prompts import CATEGORIES, WorldPrompt, draw_prompts
from examples.openmoji.truth import ReadCaption, TrueObject, Truth, read_caption, truth_of
from foundry.errors import UserError

ASKED = Truth(
    objects=(TrueObject(kind="owl", size="large", place="left"), TrueObject(kind="key", size="small", place="right")),
    background_color="blue",
    pattern="striped",
    relation=Relation(subject="owl", relation="left of", other="key"),
)
CAPTION = "A large owl is on the left. A small key is on the right. The background is striped blue."


@pytest.fixture(scope="module")
def prompts() -> tuple[WorldPrompt, ...]:
    return draw_prompts(count=4, seed=3)


def _read(scene: object) -> ReadCaption:
    return read_caption(describe(scene, seed=0).dense)  # type: ignore[arg-type]


def test_the_own_scene_fulfils_every_prompt(prompts: tuple[WorldPrompt, ...]) -> None:
    for prompt in prompts:
        assert set(check(_read(prompt.scene), prompt.asked).values()) == {1.0}, prompt.text


def test_the_scene_of_another_prompt_does_not(prompts: tuple[WorldPrompt, ...]) -> None:
    for prompt, other in itertools.pairwise(prompts):
        assert check(_read(other.scene), prompt.asked)["all"] == 0.0


def test_every_category_has_as_many_of_each_split(prompts: tuple[WorldPrompt, ...]) -> None:
    assert Counter((prompt.category, prompt.scene.split) for prompt in prompts) == {
        (name, split): 4 for name in CATEGORIES for split in SPLITS
    }
    assert len({prompt.text for prompt in prompts}) == len(prompts)


def test_nothing_is_held_out_of_a_prompt_without_places(prompts: tuple[WorldPrompt, ...]) -> None:
    held_out = Counter(prompt.category for prompt in prompts if prompt.held_out)
    assert held_out == {name: 4 for name in CATEGORIES if name not in ("relation", "count")}
    dense = draw_prompts(count=4, seed=3, style="dense")
    assert Counter(prompt.category for prompt in dense if prompt.held_out) == dict.fromkeys(CATEGORIES, 4)


def test_a_held_out_prompt_names_a_combination_that_training_never_shows(prompts: tuple[WorldPrompt, ...]) -> None:
    for prompt in prompts:
        asked = prompt.asked
        for thing in asked.objects:
            if thing.place:
                assert is_held_out(thing.kind, thing.place, asked.background_color, asked.pattern) == prompt.held_out


def test_prompts_say_what_their_category_is_about(prompts: tuple[WorldPrompt, ...]) -> None:
    for prompt in prompts:
        category, things = CATEGORIES[prompt.category], prompt.asked.objects
        assert len(things) in category.num_objects
        assert all(getattr(thing, name) for thing in things for name in category.stated - {"relation"})
        assert (prompt.asked.relation is not None) >= (prompt.category == "relation")
        assert {"count": len({thing.kind for thing in things}) < len(things)}.get(prompt.category, True)
        for thing in things:
            assert thing.kind in prompt.text


def test_prompts_depend_on_their_seed_alone(prompts: tuple[WorldPrompt, ...]) -> None:
    assert draw_prompts(count=4, seed=3) == prompts
    assert {one.text for one in draw_prompts(count=2, seed=3)} <= {one.text for one in prompts}
    assert not {one.text for one in draw_prompts(count=4, seed=4)} & {one.text for one in prompts}


def test_both_styles_ask_for_the_same_scenes(prompts: tuple[WorldPrompt, ...]) -> None:
    dense = draw_prompts(count=4, seed=3, style="dense")
    assert [one.scene for one in dense] == [one.scene for one in prompts]
    assert all(one.asked == truth_of(one.scene) and one.text == describe(one.scene, seed=3).dense for one in dense)


def test_a_small_world_has_single_objects_of_its_kinds() -> None:
    prompts = draw_prompts(count=3, seed=1, single_object=True, num_kinds=8)
    assert {prompt.category for prompt in prompts} == CATEGORIES.keys() - {"relation", "count"}
    assert {len(prompt.asked.objects) for prompt in prompts} == {1}
    assert {prompt.asked.objects[0].kind for prompt in prompts} <= set(KIND_NAMES[:8])


def test_a_world_without_so_many_prompts_says_so() -> None:
    with pytest.raises(UserError, match="this world has 0 prompts of the category relation, not 1"):
        draw_prompts(count=1, seed=0, num_kinds=1)


def test_what_is_right_is_found_right() -> None:
    assert check(read_caption(CAPTION), ASKED) == dict.fromkeys(CHECKS, 1.0)


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("large owl", "large fox", {"object": 0.5, "size": 0.5, "place": 0.5, "relation": 0, "count": 0}),
        ("A small key is on the right.", "", {"object": 0.5, "size": 0.5, "place": 0.5, "relation": 0, "count": 0}),
        ("large owl", "small owl", {"size": 0.5}),
        ("on the left", "at the top", {"place": 0.5}),
        ("on the left", "in the bottom right corner", {"place": 0.5, "relation": 0}),
        ("striped blue", "striped red", {"color": 0, "background": 0}),
        ("striped blue", "dotted blue", {"pattern": 0, "background": 0}),
        ("striped blue", "striped blue and red", {"color": 0, "background": 0}),
        (CAPTION[-1], ". A small fish is at the top.", {"count": 0}),
        (CAPTION[-1], ". A small key is at the top.", {"count": 0}),
    ],
)
def test_an_error_costs_the_checks_that_it_is_about(old: str, new: str, wrong: dict[str, float]) -> None:
    head, found, tail = CAPTION.rpartition(old)
    assert found
    assert check(read_caption(head + new + tail), ASKED) == dict.fromkeys(CHECKS, 1.0) | wrong | {"all": 0.0}


def test_what_a_prompt_leaves_open_is_not_checked() -> None:
    asked = Truth(objects=(TrueObject(kind="owl", size="", place=""),), background_color="", pattern="")
    read = read_caption("A small owl is at the top. The background is plain red.")
    assert check(read, asked) == {"object": 1.0, "count": 1.0, "all": 1.0}


@pytest.mark.parametrize(
    ("relation", "first", "second", "holds"),
    [
        ("left of", "top left", "bottom right", True),
        ("left of", "top", "bottom", False),
        ("right of", "right", "center", True),
        ("right of", "left", "center", False),
        ("above", "top right", "left", True),
        ("above", "left", "top right", False),
        ("below", "bottom", "center", True),
        ("below", "center", "right", False),
    ],
)
def test_relations_are_those_of_the_places(relation: str, first: str, second: str, holds: bool) -> None:
    objects = [TrueObject(kind="owl", size="", place=first), TrueObject(kind="key", size="", place=second)]
    assert stands(objects, Relation(subject="owl", relation=relation, other="key")) == holds
    assert not stands(objects[:1], Relation(subject="owl", relation=relation, other="key"))


def test_two_of_a_kind_need_two() -> None:
    asked = dataclasses.replace(ASKED, objects=(ASKED.objects[0], ASKED.objects[0]), relation=None)
    values = check(read_caption(CAPTION), asked)
    assert (values["object"], values["size"], values["place"], values["count"]) == (0.5, 0.5, 0.5, 0.0)
