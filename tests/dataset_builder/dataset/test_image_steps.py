"""Steps that look at images: each is merged, compared, drawn and accounted for once."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from dataset_builder.dataset.building import build_dataset
from dataset_builder.dataset.recipe import BuildConfig, DedupConfig
from dataset_builder.sql.dataset_files import open_stored
from foundry.storage.folder import Folder
from tests.dataset_builder.dataset.built import ask, built, check_that_the_funnel_adds_up
from tests.dataset_builder.small_run import SmallRun


def test_no_noun_is_in_many_more_images_than_allowed(config: BuildConfig, tmp_path: Path) -> None:
    run = SmallRun(num_images=1000, unit_size=500, rejected=()).write(Folder(str(tmp_path / "many")))
    with built(replace(config, captions=(run.url,), max_per_noun=100)) as database:
        assert (
            60 < ask(database, "SELECT max(num_captions) FROM noun_counts WHERE noun = 'owl' AND prompt = 'dense'")[0][0] < 140
        )
        check_that_the_funnel_adds_up(database, planned=1000)
    nouns = ("owl", "house", "tree", "sky")
    uncapped = replace(config, captions=(run.url,), max_per_noun=100, uncapped_nouns=nouns, out=config.out + "-2")
    assert build_dataset(replace(uncapped, dry_run=True)).funnel["kept"][-1].as_py() == 1000


def test_of_images_with_the_same_bytes_one_is_kept(config: BuildConfig) -> None:
    with built(replace(config, dedup=DedupConfig(exact=True))) as database:  # all images of the small run have one hash
        assert ask(database, "SELECT key, exact_group FROM samples") == [("img_0", 0)]
        check_that_the_funnel_adds_up(database, planned=8)


def test_near_copies_and_copies_are_told_apart_and_their_groups_stay_visible(config: BuildConfig, tmp_path: Path) -> None:
    code = 0x5A5A5A5A5A5A5A5A
    scored = SmallRun(
        num_images=6,
        rejected=(),
        content_hashes={"img_0": "x", "img_1": "x", "img_2": "y", "img_3": "z", "img_4": "u", "img_5": "v"},
        perceptual_hashes={"img_0": code, "img_1": code, "img_2": code ^ 0b11, "img_3": code ^ 0xFF, "img_4": 3},
    ).write(Folder(str(tmp_path / "scored")))
    near = replace(config, captions=(scored.url,), dedup=DedupConfig(max_hamming=4))
    with built(near) as database:
        assert ask(database, "SELECT key FROM samples ORDER BY key") == [("img_0",), ("img_3",), ("img_4",), ("img_5",)]
        assert ask(database, "SELECT key, reason FROM dropped ORDER BY key") == [
            ("img_1", "the same bytes as another image"),
            ("img_2", "nearly the same as another image"),
        ]
        assert ask(database, "SELECT key, exact_group, near_group, is_copy, is_kept FROM groups ORDER BY key") == [
            ("img_0", 0, 0, False, True), ("img_1", 0, 0, True, False), ("img_2", None, 0, False, False)]  # fmt: skip
        check_that_the_funnel_adds_up(database, planned=6)
    notes = build_dataset(replace(near, dry_run=True)).notes
    assert notes[-1].startswith("2 images have no perceptual hash to compare, being plain or not scored")


def test_runs_are_put_together_and_equal_keys_are_told_apart(config: BuildConfig, run: str, tmp_path: Path) -> None:
    others = {"img_0": "01", "img_1": "01"}
    trees = SmallRun(num_images=2, num_committed=1, captions={"dense": "A tree."}, rejected=(), content_hashes=others)
    other = trees.write(Folder(str(tmp_path / "trees")))
    with built(replace(config, captions=(run, other.url))) as database:
        assert ask(database, "SELECT key, run FROM samples ORDER BY ALL") == [
            ("img_2", "owls"), ("img_3", "owls"), ("img_5", "owls"),
            ("owls/img_0", "owls"), ("owls/img_1", "owls"), ("trees/img_0", "trees"), ("trees/img_1", "trees")]  # fmt: skip
        assert ask(database, "SELECT caption FROM captions WHERE key = 'trees/img_1'") == [("A tree.",)]
        check_that_the_funnel_adds_up(database, planned=10)


def test_runs_of_one_name_keep_apart(config: BuildConfig, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {f"img_{n}": "01" for n in range(8)}
    SmallRun(content_hashes=others).write(Folder(str(tmp_path / "again" / "owls")))
    monkeypatch.chdir(tmp_path / "again")
    with built(replace(config, captions=(run, "owls"))) as database:
        assert ask(database, "SELECT DISTINCT run FROM samples ORDER BY run") == [("again/owls",), ("owls",)]


def test_an_image_of_two_runs_is_one_sample_with_the_captions_of_both(config: BuildConfig, run: str, tmp_path: Path) -> None:
    tags = SmallRun(captions={"tags": "A tree, a house."}, run_id="tagger", rejected=("img_1", "img_2"), num_committed=3)
    other = tags.write(Folder(str(tmp_path / "tags")))
    splits: dict[str, float | str] = {"tagged": "prompt = 'tags'", "train": 1.0}
    with built(replace(config, captions=(run, other.url), splits=splits)) as database:
        prompts = ask(database, "SELECT key, run, [c.prompt for c in captions], split FROM samples ORDER BY key")
        assert prompts == [
            ("img_0", "owls", ["dense", "short", "tags"], "tagged"), ("img_1", "owls", ["dense", "short"], "train"),
            ("img_2", "owls", ["dense", "short"], "train"), ("img_3", "owls", ["dense", "short", "tags"], "tagged"),
            ("img_4", "tags", ["tags"], "tagged"), ("img_5", "owls", ["dense", "short", "tags"], "tagged"),
            ("img_6", "tags", ["tags"], "tagged"), ("img_7", "tags", ["tags"], "tagged")]  # fmt: skip
        assert ask(database, "SELECT run, key FROM dropped WHERE step = 'merged'") == [
            ("tags", "img_0"), ("tags", "img_3"), ("tags", "img_5")]  # fmt: skip
        assert ask(database, "SELECT caption, nouns FROM captions WHERE key = 'img_3' AND prompt = 'tags'") == [
            ("A tree, a house.", ["house"])  # "tree," with its comma is no word of the small run's tagger
        ]  # fmt: skip
        check_that_the_funnel_adds_up(database, planned=16)


def test_one_prompt_of_two_models_becomes_two_and_one_of_the_same_model_stays_one(
    config: BuildConfig, run: str, tmp_path: Path
) -> None:
    other = SmallRun(captions={"dense": "A tree."}, run_id="other model").write(Folder(str(tmp_path / "trees")))
    built_both = build_dataset(replace(config, captions=(run, other.url)))
    assert "several runs have captions of one image under dense: they are owls/dense and trees/dense here" in built_both.notes
    with open_stored(config.out) as database:
        assert ask(database, "SELECT prompt, caption FROM captions WHERE key = 'img_0'") == [
            ("owls/dense", "An owl sits beside a house and a tree under the sky."),
            ("short", "An image of an owl."),
            ("trees/dense", "A tree."),
        ]
        assert ask(database, "SELECT DISTINCT noun FROM compare('trees/dense', 'owls/dense') WHERE count_a > 0") == [("tree",)]
    again = SmallRun(num_committed=3).write(Folder(str(tmp_path / "again")))  # the same model, further on
    with built(replace(config, captions=(run, again.url), out=config.out + "-2")) as database:
        assert ask(database, "SELECT prompt, count(*) FROM captions GROUP BY ALL ORDER BY ALL") == [("dense", 7), ("short", 7)]
        assert ask(database, "SELECT key FROM samples WHERE run = 'again' ORDER BY key") == [("img_6",), ("img_7",)]
        check_that_the_funnel_adds_up(database, planned=16)


def test_merged_images_take_part_in_every_later_step_as_one(config: BuildConfig, run: str, tmp_path: Path) -> None:
    other = SmallRun(captions={"tags": "A tree."}, run_id="tagger").write(Folder(str(tmp_path / "tags")))
    recipe = replace(config, captions=(run, other.url), dedup=DedupConfig(exact=True), where="prompt <> 'short'")
    with built(recipe) as database:  # all images of the small run have one hash
        assert ask(database, "SELECT key, len(captions) FROM samples") == [("img_0", 2)]
        steps = ask(database, "SELECT step, count(*) FROM dropped GROUP BY ALL ORDER BY ALL")
        assert steps == [("captioned", 4), ("dedup", 4), ("merged", 5), ("rejected", 2)]
        assert ask(database, "SELECT key, run, prompt, step FROM dropped_captions") == [("img_0", "owls", "short", "where")]
        check_that_the_funnel_adds_up(database, planned=16)
    with built(replace(recipe, dedup=DedupConfig(), max_per_noun=1, out=config.out + "-2")) as database:
        assert ask(database, "SELECT count(*) FROM samples")[0][0] < 5
    with built(replace(recipe, dedup=DedupConfig(), out=config.out + "-3", prompts=("tags",))) as database:
        assert ask(database, "SELECT DISTINCT run FROM samples") == [("tags",)]  # where the caption comes from
        card = (Path(config.out + "-3") / "README.md").read_text()
        assert re.search(r"num_words\n +0 █+ 5\n", card)  # five captions of two words
