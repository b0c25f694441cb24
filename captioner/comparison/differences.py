"""Differences between captions of one image, marked in HTML: words that no rival has there, and nouns that no rival names."""

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from difflib import SequenceMatcher
from html import escape

from dataset_builder.concepts.tagger import META_NOUNS, Noun

_WORD = re.compile(r"\S+")
_OTHER = "other"
_ALONE = "alone"


def marked(texts: Sequence[str], nouns: Sequence[Sequence[Noun]], rivals: Sequence[Sequence[int]]) -> list[str]:
    """The texts as HTML, escaped. `nouns`: those of each text. `rivals`: the texts that each is compared with, by index.

    `<mark>` is around words that the longest common sequences with the rivals do not hold, `<mark class="alone">` around
    words with a noun that no rival names. META_NOUNS name nothing that is shown, so they are not looked at.
    """
    words = [_normalised(text) for text in texts]
    concepts = [{noun.lemma for noun in found} - META_NOUNS for found in nouns]
    html = []
    for index, text in enumerate(texts):
        shared: set[int] = set()
        named: set[str] = set()
        for other in rivals[index]:
            shared |= _shared(words[index], words[other])
            named |= concepts[other]
        alone = [noun for noun in nouns[index] if noun.lemma in concepts[index] - named]
        html.append(_html(text, shared, alone))
    return html


def _normalised(text: str) -> list[str]:
    """The words, without case and the signs around them."""
    return [word.lower().strip(".,;:!?\"'()[]") for word in text.split()]


def _shared(own: Sequence[str], other: Sequence[str]) -> AbstractSet[int]:
    """The indices of the words in `own` that the common sequences with `other` hold."""
    blocks = SequenceMatcher(a=own, b=other, autojunk=False).get_matching_blocks()
    return {index for block in blocks for index in range(block.a, block.a + block.size)}


def _html(text: str, shared: AbstractSet[int], alone: Sequence[Noun]) -> str:
    """Neighbouring words that are marked alike are marked together."""
    parts: list[tuple[str, int, int]] = []
    for index, found in enumerate(_WORD.finditer(text)):
        has_noun = any(noun.start_char < found.end() and found.start() < noun.end_char for noun in alone)
        kind = _ALONE if has_noun else "" if index in shared else _OTHER
        if parts and parts[-1][0] == kind:
            parts[-1] = (kind, parts[-1][1], found.end())
        else:
            parts.append((kind, found.start(), found.end()))
    tags = {"": ("", ""), _OTHER: ("<mark>", "</mark>"), _ALONE: ('<mark class="alone">', "</mark>")}
    return " ".join(f"{tags[kind][0]}{escape(text[start:end])}{tags[kind][1]}" for kind, start, end in parts)
