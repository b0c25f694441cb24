"""The rendering of structured captions says what they say, in several ways, the same for the same seed."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.structured.prose import prose
from examples.openmoji.composition import draw_scene
from examples.openmoji.structured import structured_caption

SIGN: dict[str, Any] = {
    "what": "A street.",
    "light": "soft",
    "colors": ["#FFF", "#00FF00"],
    "parts": [{"type": "text", "bbox": [0, 700, 200, 900], "desc": "a sign", "text": "STOP\nhere"}],
}


def test_a_rendering_is_decided_by_value_and_seed() -> None:
    scenes = [structured_caption(draw_scene(seed=1, index=index), seed=1) for index in range(5)]
    for scene in scenes:
        said = [prose(scene, seed=seed) for seed in range(40)]
        assert said == [prose(json.loads(json.dumps(scene)), seed=seed) for seed in range(40)]
        assert len(set(said)) > 15
        assert all(text and text == " ".join(text.split()) for text in said)


@pytest.mark.parametrize("index", range(12))
def test_objects_are_told_at_their_places(index: int) -> None:
    scene = draw_scene(seed=2, index=index)
    kinds = [thing.kind for thing in scene.objects]
    unique = [thing for thing in scene.objects if kinds.count(thing.kind) == 1]
    told = 0
    for seed in range(20):
        for sentence in prose(structured_caption(scene, seed=2), seed=seed).split(". "):
            for thing in unique:
                if re.search(rf"{thing.size} \w+ {thing.kind}, an? ", sentence):
                    assert all(word in sentence.lower() for word in thing.place.split())
                    told += 1
    assert told >= 10 * len(unique)


@pytest.mark.parametrize("seed", range(12))
def test_codes_boxes_labels_and_nulls_are_not_told(seed: int) -> None:
    said = prose({**SIGN, "nothing": None}, seed=seed)
    assert not any(word in said for word in ("#", "700", "nothing", "null", "None"))
    if "sign" in said:
        assert "STOP here" in said and "top right" in said.lower()


def test_boxes_in_fractions_tell_the_same_place() -> None:
    sign = SIGN["parts"][0]
    fractions = {**SIGN, "parts": [{**sign, "bbox": [n / 1000 for n in sign["bbox"]]}]}
    for seed in range(12):
        assert prose(fractions, seed=seed) == prose(SIGN, seed=seed)


def test_boxes_as_qwen3_vl_writes_them_tell_the_same_place() -> None:
    """Left before top; a label; and nothing of a box in pixels, whose image may be of any size."""
    sign = {key: value for key, value in SIGN["parts"][0].items() if key not in ("bbox", "desc")}
    of_qwen = {**SIGN, "parts": [{**sign, "bbox_2d": [700, 0, 900, 200], "label": "a sign"}]}
    for seed in range(12):
        assert prose(of_qwen, seed=seed) == prose(SIGN, seed=seed)
    in_pixels = {"bbox_2d": [1700, 0, 1900, 200], "label": "a sign"}
    assert {prose(in_pixels, seed=seed) for seed in range(12)} == {"A sign."}


def test_keys_are_dropped_and_shuffled_by_seed() -> None:
    said = [prose(SIGN, seed=seed) for seed in range(200)]
    assert sum("sign" not in text for text in said) > 10
    assert sum("sign" in text and "soft" in text and text.index("sign") < text.index("soft") for text in said) > 10
    assert all(text.startswith("A street.") for text in said)


def test_no_rendering_of_the_shipped_schema_lacks_the_whole() -> None:
    for index in range(3):
        scene = structured_caption(draw_scene(seed=3, index=index), seed=3)
        said = [prose(scene, seed=seed) for seed in range(200)]
        assert all(text.startswith(scene["high_level_description"]) for text in said)
        assert sum("background:" not in text.lower() and "(background)" not in text for text in said) > 10


KITCHEN = {
    "description": "A kitchen with a stove",
    "objects": [
        {"desc": "a red pan", "bbox": [0, 0, 200, 200], "material": "iron", "parts": [{"description": "a long handle"}]},
        {"name": "cup", "color": "blue", "bbox": [700, 700, 900, 900]},
    ],
    "mood": "calm",
}


def test_a_description_does_not_silence_what_is_below_it() -> None:
    said = [prose(KITCHEN, seed=seed) for seed in range(60)]
    assert all(text.startswith("A kitchen with a stove.") for text in said)
    assert any(all(word in text for word in ("red pan", "iron", "long handle", "up", "blue", "calm")) for text in said)
    for text in (text.lower() for text in said):
        assert "red pan" not in text or "top left" in text
        assert "cup" not in text or "bottom right" in text
        assert not any(number in text for number in ("200", "700", "900"))
    assert any("calm" not in text.lower() for text in said), "dropped like any other key"
    assert prose({"desc": "", "mood": "calm"}, seed=0).lower().count("calm") == 1


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_any_value_is_told(value: object) -> None:
    assert isinstance(prose({"a": value, "bbox": value, "desc": value, "text": value}, seed=1), str)
