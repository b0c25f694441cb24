"""Noun counts add up, however the captions are split into units."""

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder.concepts.noun_counts import CaptionNouns, caption_nouns, count_nouns, merge_counts
from dataset_builder.concepts.tagger import Noun
from dataset_builder.schema import NOUN_COUNTS
from foundry.storage.schema import versioned

CAPTIONS = st.builds(
    lambda prompt, lemmas, read: CaptionNouns(prompt=prompt, lemmas=tuple(lemmas), num_t5_nouns=min(read, len(lemmas))),
    st.sampled_from(["dense", "short"]),
    st.lists(st.sampled_from(["owl", "image", "sky", "élan"]), max_size=6),
    st.integers(0, 6),
)


def test_a_noun_is_read_when_the_encoder_reaches_its_end() -> None:
    nouns = [Noun("owl", 2, 5), Noun("image", 8, 13), Noun("owl", 20, 24)]
    found = caption_nouns(nouns, prompt="dense", cut_char=12)
    assert found == CaptionNouns(prompt="dense", lemmas=("owl", "image", "owl"), num_t5_nouns=1)
    assert (found.num_distinct, found.num_meta) == (2, 1)
    assert caption_nouns(nouns, prompt="dense", cut_char=13).num_t5_nouns == 2


def test_counts_by_hand() -> None:
    table = count_nouns(
        [
            CaptionNouns(prompt="short", lemmas=("owl",), num_t5_nouns=1),
            CaptionNouns(prompt="dense", lemmas=("sky", "owl", "sky"), num_t5_nouns=2),
            CaptionNouns(prompt="dense", lemmas=("owl",), num_t5_nouns=0),
        ]
    )
    assert table.schema == NOUN_COUNTS
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        ("dense", "owl", 2, 1, 2),
        ("dense", "sky", 2, 1, 1),
        ("short", "owl", 1, 1, 1),
    ]


@given(captions=st.lists(CAPTIONS, max_size=20), cut=st.integers(0, 20))
@settings(deadline=None)
def test_units_add_up_to_the_whole(captions: list[CaptionNouns], cut: int) -> None:
    parts = [count_nouns(captions[cut:]), count_nouns(captions[:cut]).cast(versioned(NOUN_COUNTS))]
    assert merge_counts(parts).equals(count_nouns(captions))


def test_nothing_adds_up_to_nothing() -> None:
    assert merge_counts([]) == pa.table(NOUN_COUNTS.empty_table())
