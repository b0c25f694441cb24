"""What is counted of captions as they are written: words, T5 tokens and nouns; the same for our own and for foreign ones."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from dataset_builder.concepts.noun_counts import CaptionNouns, caption_nouns
from dataset_builder.concepts.t5_view import T5Config, T5View
from dataset_builder.concepts.tagger import NounTagger, TaggerConfig


def count_captions(
    captions: Sequence[str], *, prompt: str, tagger: TaggerConfig, t5: T5Config
) -> tuple[list[dict[str, Any]], list[CaptionNouns]]:
    """The counted columns of schema.CAPTIONS for captions under one prompt, and their nouns for `count_nouns`."""
    views = load_t5_view(t5).measure(captions)
    tagged = zip(load_tagger(tagger).tag(captions), views, strict=True)
    nouns = [caption_nouns(found, prompt=prompt, cut_char=view.cut_char) for found, view in tagged]
    rows = [
        {
            "prompt": prompt,
            "num_words": len(caption.split()),
            "num_t5_tokens": view.num_t5_tokens,
            "num_nouns": len(found.lemmas),
            "num_distinct_nouns": found.num_distinct,
            "num_meta_nouns": found.num_meta,
            "num_t5_nouns": found.num_t5_nouns,
            "nouns": list(found.lemmas),
        }
        for caption, view, found in zip(captions, views, nouns, strict=True)
    ]
    return rows, nouns


@lru_cache(maxsize=2)
def load_tagger(config: TaggerConfig) -> NounTagger:
    """Loaded once per process."""
    return NounTagger(config)


@lru_cache(maxsize=2)
def load_t5_view(config: T5Config) -> T5View:
    """Loaded once per process."""
    return T5View(config)
