"""Noun counts of captions: a row's words, T5 tokens and nouns, and a unit's mergeable table."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dataset_builder.concepts.t5_view import T5Config, T5View
from dataset_builder.concepts.tagger import META_NOUNS, Noun, NounTagger, TaggerConfig

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class CaptionNouns:
    """The nouns of one caption under one prompt. The first `num_t5_nouns` of `lemmas` are those that the text encoder reads."""

    prompt: str
    lemmas: tuple[str, ...]
    num_t5_nouns: int

    @property
    def num_distinct(self) -> int:
        """Different lemmas."""
        return len(set(self.lemmas))

    @property
    def num_meta(self) -> int:
        """Occurrences of META_NOUNS."""
        return sum(lemma in META_NOUNS for lemma in self.lemmas)


def caption_nouns(nouns: Sequence[Noun], *, prompt: str, cut_char: int) -> CaptionNouns:
    """The nouns of a caption of which the encoder reads the first `cut_char` characters; a noun counts as read when whole."""
    return CaptionNouns(
        prompt=prompt,
        lemmas=tuple(noun.lemma for noun in nouns),
        num_t5_nouns=sum(noun.end_char <= cut_char for noun in nouns),
    )


def count_nouns(captions: Iterable[CaptionNouns]) -> "pa.Table":
    """Occurrences of each noun under each prompt (schema.NOUN_COUNTS), sorted by prompt and noun; `merge_counts` adds up."""
    import pyarrow as pa

    from dataset_builder.schema import NOUN_COUNTS

    whole: Counter[tuple[str, str]] = Counter()
    read: Counter[tuple[str, str]] = Counter()
    captions_with: Counter[tuple[str, str]] = Counter()
    for caption in captions:
        keys = [(caption.prompt, lemma) for lemma in caption.lemmas]
        whole.update(keys)
        read.update(keys[: caption.num_t5_nouns])
        captions_with.update(set(keys))
    rows = [
        {"prompt": key[0], "noun": key[1], "count": whole[key], "count_t5": read[key], "num_captions": captions_with[key]}
        for key in sorted(whole)
    ]
    return pa.Table.from_pylist(rows, schema=NOUN_COUNTS)


def merge_counts(tables: "Sequence[pa.Table]") -> "pa.Table":
    """The sum of tables of schema.NOUN_COUNTS, sorted by prompt and noun."""
    import pyarrow as pa

    from dataset_builder.schema import NOUN_COUNTS

    every = pa.concat_tables([NOUN_COUNTS.empty_table(), *(table.replace_schema_metadata(None) for table in tables)])
    sums = every.group_by(["prompt", "noun"]).aggregate([(name, "sum") for name in ("count", "count_t5", "num_captions")])
    named = sums.rename_columns([name.removesuffix("_sum") for name in sums.column_names])
    return named.select(NOUN_COUNTS.names).cast(NOUN_COUNTS).sort_by([("prompt", "ascending"), ("noun", "ascending")])


def count_captions(
    captions: Sequence[str],
    *,
    prompt: str,
    tagger: TaggerConfig,
    t5: T5Config,
    words: Sequence[str] | None = None,
) -> tuple[list[dict[str, Any]], list[CaptionNouns]]:
    """The counted columns of schema.CAPTIONS for captions under one prompt, and their nouns for `count_nouns`.

    `words` are the captions with all that is no word blanked out, as words_of_json does; default: the captions.
    """
    words = captions if words is None else words
    views = load_t5_view(t5).measure(captions)
    tagged = zip(load_tagger(tagger).tag(words), views, strict=True)
    nouns = [caption_nouns(found, prompt=prompt, cut_char=view.cut_char) for found, view in tagged]
    rows = [
        {
            "prompt": prompt,
            "num_words": len(text.split()),
            "num_t5_tokens": view.num_t5_tokens,
            "num_nouns": len(found.lemmas),
            "num_distinct_nouns": found.num_distinct,
            "num_meta_nouns": found.num_meta,
            "num_t5_nouns": found.num_t5_nouns,
            "nouns": list(found.lemmas),
        }
        for text, view, found in zip(words, views, nouns, strict=True)
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
