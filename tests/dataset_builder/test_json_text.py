"""Nouns of a structured caption are counted in its values, at their positions in the JSON."""

import json

from hypothesis import given
from hypothesis import strategies as st

from dataset_builder.concepts.noun_counts import count_captions
from dataset_builder.concepts.tagger import TaggerConfig
from dataset_builder.json_text import words_of_json
from tests.dataset_builder.small_run import MINI_T5

CAPTION = json.dumps(
    {
        "owl": "An apple",
        "style": {"mood": "it is calm", "color_palette": ["#FF0000", "#abc"]},
        "elements": [{"type": "object", "bbox": [1, 2, 3, 4], "desc": 'a key with the "house"', "note": "a\ntree"}],
    },
    separators=(",", ":"),
)


def test_keys_labels_boxes_and_colours_are_no_words() -> None:
    words = words_of_json(CAPTION)
    assert words.split() == ["An", "apple.", "it", "is", "calm.", "a", "key", "with", "the", "house", ".", "a", "tree."]
    assert words.index("apple") == CAPTION.index("apple")
    assert words.index("tree") == CAPTION.index("tree")


def test_density_is_that_of_the_values() -> None:
    (row,), (nouns,) = count_captions([CAPTION], words=[words_of_json(CAPTION)], prompt="p", tagger=TaggerConfig(), t5=MINI_T5)
    (whole,), _ = count_captions([CAPTION], prompt="p", tagger=TaggerConfig(), t5=MINI_T5)
    assert nouns.lemmas == ("apple", "key", "house", "tree")
    assert row["num_t5_tokens"] == whole["num_t5_tokens"] > 60, "T5 reads all of the JSON"
    assert row["num_words"] == 13


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_positions_are_those_of_the_json(value: object) -> None:
    text = json.dumps({"a": value}, ensure_ascii=False, separators=(",", ":"))
    words = words_of_json(text)
    assert len(words) == len(text)
    assert all(word in (" ", ".", letter) for word, letter in zip(words, text, strict=True))
