"""Differences between captions of one image, marked in HTML: words that no rival has there, and nouns that no rival names."""

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from difflib import SequenceMatcher
from html import escape

from dataset_builder.concepts.tagger import META_NOUNS, Noun

_WORD = re.compile(r"\S+")
_OTHER = "other"
_ALONE = "alone"


def marked(
    texts: Sequence[str], words: Sequence[str], nouns: Sequence[Sequence[Noun]], rivals: Sequence[Sequence[int]]
) -> list[str]:
    """The texts as HTML, escaped. `words`: each text with all that is no word blanked out, such as keys of JSON, which are not
    compared. `nouns`: those of each text. `rivals`: the texts that each is compared with, by index.

    `<mark>` is around words that the longest common sequences with the rivals do not hold, `<mark class="alone">` around
    words with a noun that no rival names. META_NOUNS name nothing that is shown, so they are not looked at.
    """
    spoken = [_spoken(text, own) for text, own in zip(texts, words, strict=True)]
    concepts = [{noun.lemma for noun in found} - META_NOUNS for found in nouns]
    html = []
    for index, text in enumerate(texts):
        shared: set[int] = set()
        named: set[str] = set()
        for other in rivals[index]:
            shared |= _shared(spoken[index], spoken[other])
            named |= concepts[other]
        alone = [noun for noun in nouns[index] if noun.lemma in concepts[index] - named]
        html.append(_html(text, spoken[index], shared, alone))
    return html


def _spoken(text: str, words: str) -> dict[int, str]:
    """The words of a text by where they begin in it, without case and the signs around them."""
    found = ((one.start(), words[one.start() : one.end()]) for one in _WORD.finditer(text))
    return {start: word.strip().lower().strip(".,;:!?\"'()[]") for start, word in found if not word.isspace()}


def _shared(own: Mapping[int, str], other: Mapping[int, str]) -> AbstractSet[int]:
    """Start positions of the words of `own` that are in common sequences with `other`."""
    starts = list(own)
    blocks = SequenceMatcher(a=list(own.values()), b=list(other.values()), autojunk=False).get_matching_blocks()
    return {starts[index] for block in blocks for index in range(block.a, block.a + block.size)}


def _html(text: str, spoken: Mapping[int, str], shared: AbstractSet[int], alone: Sequence[Noun]) -> str:
    """Neighbouring words that are marked alike are marked together."""
    parts: list[tuple[str, int, int]] = []
    for found in _WORD.finditer(text):
        has_noun = any(noun.start_char < found.end() and found.start() < noun.end_char for noun in alone)
        is_known = found.start() in shared or found.start() not in spoken
        kind = _ALONE if has_noun else "" if is_known else _OTHER
        if parts and parts[-1][0] == kind:
            parts[-1] = (kind, parts[-1][1], found.end())
        else:
            parts.append((kind, found.start(), found.end()))
    tags = {"": ("", ""), _OTHER: ("<mark>", "</mark>"), _ALONE: ('<mark class="alone">', "</mark>")}
    return " ".join(f"{tags[kind][0]}{escape(text[start:end])}{tags[kind][1]}" for kind, start, end in parts)
