"""Marks show what the captions of an image do not share, and nothing that a caption holds becomes markup."""

import re
from html import unescape

from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.comparison.differences import marked
from dataset_builder.concepts.tagger import Noun
from dataset_builder.json_text import words_of_json

BOTH = ([1], [0])


def nouns(text: str, *lemmas: str) -> list[Noun]:
    """Where these words are in the text."""
    return [Noun(lemma, text.index(lemma), text.index(lemma) + len(lemma)) for lemma in lemmas]


def test_words_and_nouns_that_one_alone_has_are_marked() -> None:
    texts = ["A red owl sits on a house.", "A green owl sits on a tree in an image."]
    found = [nouns(texts[0], "owl", "house"), nouns(texts[1], "owl", "tree", "image")]
    assert marked(texts, texts, found, BOTH) == [
        'A <mark>red</mark> owl sits on a <mark class="alone">house.</mark>',
        'A <mark>green</mark> owl sits on a <mark class="alone">tree</mark> <mark>in an image.</mark>',
    ]


def test_a_word_that_any_rival_shares_is_not_marked() -> None:
    texts = ["an owl", "a key", "an owl"]
    found = [nouns(texts[0], "owl"), nouns(texts[1], "key"), nouns(texts[2], "owl")]
    assert marked(texts, texts, found, ([1, 2], [0, 2], [0, 1])) == [
        "an owl",
        '<mark>a</mark> <mark class="alone">key</mark>',
        "an owl",
    ]
    assert marked(texts, texts, found, ([1], [0, 2], [1])) == [
        '<mark>an</mark> <mark class="alone">owl</mark>',
        '<mark>a</mark> <mark class="alone">key</mark>',
        '<mark>an</mark> <mark class="alone">owl</mark>',
    ]


def test_of_json_the_values_are_compared_and_keys_and_numbers_are_never_marked() -> None:
    texts = ['{"desc": "A red owl", "bbox": [1, 2, 3, 4]}', '{"what": {"desc": "A green owl"}}', "A red owl."]
    words = [words_of_json(texts[0]), words_of_json(texts[1]), texts[2]]
    found = [nouns(text, "owl") for text in texts]
    assert [text.replace("&quot;", '"') for text in marked(texts, words, found, ([1], [2], [0]))] == [
        '{"desc": "A <mark>red</mark> owl", "bbox": [1, 2, 3, 4]}',
        '{"what": {"desc": "A <mark>green</mark> owl"}}',
        "A red owl.",
    ]


@settings(max_examples=40)
@given(st.lists(st.text(max_size=60), min_size=2, max_size=2))
def test_no_word_is_lost_and_all_are_escaped(texts: list[str]) -> None:
    for text, html in zip(texts, marked(texts, texts, [[], []], BOTH), strict=True):
        plain = re.sub(r"</?mark>", "", html)
        assert "<" not in plain
        assert unescape(plain).split() == text.split()
