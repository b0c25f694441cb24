"""Pairs for the small world's rewriter: true, without held-out combinations, and read as complete by both checks."""

import itertools
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from examples.openmoji.evaluate_rewriter import kept
from examples.openmoji.held_out import is_held_out
from examples.openmoji.labelled_texts import labelled_text
from examples.openmoji.prompts import draw_prompts
from examples.openmoji.rewriter_pairs import RewriterPairsConfig, main, pair
from examples.openmoji.truth import read_caption
from model.rewriting.rewriter import RewriterRecord
from model.rewriting.stated import lost_words

SETTINGS = yaml.safe_load(Path("examples/openmoji/rewriter.yaml").read_text())
RECORD = RewriterRecord(ignored_words=tuple(SETTINGS["ignored_words"]), synonyms=SETTINGS["synonyms"])


def test_captions_hold_no_held_out_combination_and_all_that_their_prompts_say() -> None:
    pairs = [pair(7, index) for index in range(300)]
    for prompt, caption in pairs:
        read = read_caption(caption)
        assert read.objects and len(read.colors) == len(read.patterns) == 1
        for thing in read.objects:
            assert not is_held_out(thing.kind, thing.place, next(iter(read.colors)), next(iter(read.patterns)))
        assert lost_words(prompt, caption, RECORD) == [], prompt


def test_the_file_has_the_columns_of_pairs(tmp_path: Path) -> None:
    assert main(RewriterPairsConfig(out=str(tmp_path / "pairs.parquet"), count=5)) == 0
    rows = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    assert [(row["prompt"], row["caption"]) for row in rows] == [pair(20, index) for index in range(5)]


def test_true_captions_keep_everything_and_others_do_not() -> None:
    prompts = draw_prompts(count=2, seed=1)
    true = [(prompt, labelled_text(prompt.scene, "dense", seed=0).text) for prompt in prompts]
    assert set(kept(true).values()) == {1.0}
    others = [(one[0], other[1]) for one, other in itertools.pairwise(true)]
    assert kept(others)["all"] < 0.2
    empty = [(prompt, "") for prompt in prompts]
    assert kept(empty)["all"] == 0.0
