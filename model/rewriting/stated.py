"""Words that a prompt states and its rewritten form has lost.

A word is kept if it, its singular or plural, or one of its synonyms is in the rewritten prompt; a number also if the word
after it occurs that many times. Articles, prepositions, auxiliaries and words such as `picture` may go. The check looks at
words, not at their order: it finds a lost object, colour or place, not one that has moved to another object.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Protocol

_MAY_GO = frozenset(
["a", "an", "and", "another", "are", "as", "at", "be", "before", "behind", "being", "beside",
"both", "by", "can", "containing", "depicted", "depicting", "depicts", "drawing", "drawn", "each", "features", "featuring",
"for", "from", "front", "has", "have", "having", "illustration", "image", "in", "into", "is", "it",
"its", "itself", "next", "of", "on", "one", "onto", "or", "painting", "photo", "photograph", "picture",
"scene", "seen", "showing", "shown", "shows", "some", "that", "the", "their", "them", "there", "these",
"they", "this", "those", "to", "upon", "very", "where", "which", "while", "who", "with", "within"]
)  # fmt: skip
_NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_DIGITS = {str(number): number for number in _NUMBERS.values()}
_WORD = re.compile(r"\w+(?:['’-]\w+)*")


class Synonyms(Protocol):
    """Words that a rewriter may leave out or replace."""

    @property
    def ignored_words(self) -> Sequence[str]:
        """May be left out."""
        ...

    @property
    def synonyms(self) -> Mapping[str, Sequence[str]]:
        """Words that may replace a word."""
        ...


def lost_words(prompt: str, rewritten: str, allowed: Synonyms) -> list[str]:
    """Words of a prompt that its rewritten form no longer states, in order; empty if all is kept."""
    found = Counter(map(_stem, _words(rewritten)))
    lost = []
    for word, following in pairwise([*_words(prompt), ""]):
        number = _NUMBERS.get(word) or _DIGITS.get(word)
        if word in _MAY_GO or word in allowed.ignored_words:
            continue
        same = {_stem(word), *map(_stem, allowed.synonyms.get(word, ()))}
        same |= {name for name, value in {**_NUMBERS, **_DIGITS}.items() if value == number} if number else set()
        if not any(found[one] for one in same) and not (number and found[_stem(following)] >= number):
            lost.append(word)
    return list(dict.fromkeys(lost))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _stem(word: str) -> str:
    """The singular of a regular plural, and the word itself otherwise; one of two forms of a word meets the other."""
    for plural, singular in (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("shes", "sh"), ("uses", "us")):
        if word.endswith(plural) and len(word) > len(plural) + 1:
            return word.removesuffix(plural) + singular
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us")) and len(word) > 3 else word
