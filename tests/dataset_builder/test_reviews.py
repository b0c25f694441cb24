"""Edits and flags of people: saved whole, asked by SQL, and what a data set takes in place of the model's captions."""

import json
from pathlib import Path
from typing import Any

import pytest

from dataset_builder.dataset.building import build_dataset
from dataset_builder.dataset.recipe import BuildConfig
from dataset_builder.reviews.edited_captions import COUNTED
from dataset_builder.reviews.records import Edit, FlagRow, read_reviews, save_edit, save_flags
from dataset_builder.sql.dataset_files import open_stored
from dataset_builder.sql.run_files import read_run
from foundry.errors import UserError
from foundry.storage.folder import Folder
from tests.dataset_builder.small_run import SmallRun

BEFORE = "An owl sits beside a house and a tree under the sky."


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    return SmallRun().write(Folder(str(tmp_path / "run")))


def _edit(key: str, after: str, *, nouns: list[str], by: str = "ada", before: str = BEFORE) -> Edit:
    counted: dict[str, Any] = dict.fromkeys(COUNTED, len(nouns)) | {"status": "ok", "nouns": nouns, "num_words": 4}
    return Edit(key=key, prompt="dense", edited_by=by, before=before, after=after, counted=counted)


def _rows(url: str, sql: str) -> list[dict[str, Any]]:
    with open_stored(url) as database:
        return database.fetch(sql).to_pylist()  # type: ignore[no-any-return]


def test_the_newest_edit_of_a_caption_counts_and_the_earlier_ones_stay(run: Folder) -> None:
    first = save_edit(run, _edit("img_0", "A cat sits here.", nouns=["cat"]))
    assert first is not None
    save_edit(run, _edit("img_0", "A dog sits here.", nouns=["dog"], by="bob", before="A cat sits here."), replaces=first)
    rows = _rows(run.url, 'SELECT edited_by, before, "after", is_current FROM edits ORDER BY edited_at')
    assert [(row["edited_by"], row["after"], row["is_current"]) for row in rows] == [
        ("ada", "A cat sits here.", False),
        ("bob", "A dog sits here.", True),
    ]
    assert rows[1]["before"] == rows[0]["after"]
    assert _rows(run.url, "SELECT caption FROM captions WHERE key = 'img_0' AND prompt = 'dense'") == [{"caption": BEFORE}]


def test_of_two_edits_of_the_same_revision_the_second_is_not_saved(run: Folder) -> None:
    first = save_edit(run, _edit("img_0", "A cat.", nouns=["cat"]))
    assert first is not None
    assert save_edit(run, _edit("img_0", "A dog.", nouns=["dog"])) is None
    assert save_edit(run, _edit("img_1", "A dog.", nouns=["dog"])) is not None  # another caption
    assert save_edit(run, _edit("img_0", "A fox.", nouns=["fox"]), replaces=first) is not None
    assert save_edit(run, _edit("img_0", "A hen.", nouns=["hen"]), replaces=first) is None
    assert read_reviews(run).current_edits()["img_0", "dense"]["after"] == "A fox."


@pytest.mark.parametrize("name", ["20260101T000000.999999-0123abcd.json", "20260101T000000-ab.json"])
def test_an_edit_replaces_one_whose_name_begins_with_its_time(run: Folder, name: str) -> None:
    first = save_edit(run, _edit("img_0", "A cat.", nouns=["cat"]))
    assert first is not None
    data = run.read(first)
    Path(run.path(first)).unlink()
    run.create(f"edits/{name}", data)
    assert save_edit(run, _edit("img_0", "A fox.", nouns=["fox"]), replaces=f"edits/{name}") is not None
    assert read_reviews(run).current_edits()["img_0", "dense"]["after"] == "A fox."
    with pytest.raises(UserError, match="move this file out of the run"):
        save_edit(run, _edit("img_0", "A hen.", nouns=["hen"]), replaces="edits/mine.json")


def test_a_flag_is_taken_back_by_an_empty_one(run: Folder) -> None:
    save_flags(run, [FlagRow(key=key, prompt="dense", flagged_by="ada", flag="bad") for key in ("img_0", "img_1")])
    save_flags(run, [FlagRow(key="img_1", prompt="dense", flagged_by="ada", flag="")])
    assert read_reviews(run).current_flags() == {("img_0", "dense"): "bad"}
    assert _rows(run.url, "SELECT count(*) AS n FROM flags") == [{"n": 3}]


def test_a_data_set_has_edited_captions_with_their_counts_and_says_how_many(run: Folder, tmp_path: Path) -> None:
    save_edit(run, _edit("img_0", "A fox <b>sleeps</b>.", nouns=["fox"]))
    save_flags(run, [FlagRow(key="img_1", prompt=prompt, flagged_by="ada", flag="bad") for prompt in ("dense", "short")])
    out = str(tmp_path / "dataset")
    built = build_dataset(
        BuildConfig(captions=(run.url,), out=out, where="flag IS DISTINCT FROM 'bad'", max_per_noun=1000, embed=False)
    )
    found = {(row["key"], row["prompt"]): row for row in _rows(out, "FROM captions")}
    assert {key for key, _ in found} == {"img_0", "img_2", "img_3", "img_5"}
    edited = found["img_0", "dense"]
    assert (edited["caption"], edited["nouns"], edited["num_nouns"], edited["mean_logprob"]) == (
        "A fox <b>sleeps</b>.",
        ["fox"],
        1,
        None,
    )
    assert edited["opener"] == "a fox <b>sleeps</b>."
    assert found["img_2", "dense"]["caption"] == BEFORE and found["img_2", "dense"]["mean_logprob"] == -0.5
    assert built.dataset is not None and built.dataset.record["edited_captions"] == 1
    assert "People rewrote 1 caption" in (tmp_path / "dataset" / "README.md").read_text()
    assert {"noun": "fox", "count": 1} in _rows(out, "SELECT noun, count::INT AS count FROM noun_counts")


def test_recipes_can_choose_by_edits_and_a_later_edit_is_another_data_set(run: Folder, tmp_path: Path) -> None:
    save_edit(run, _edit("img_0", "A fox.", nouns=["fox"]))
    config = BuildConfig(captions=(run.url,), out=str(tmp_path / "dataset"), where="is_edited")
    built = build_dataset(config)
    assert built.dataset is not None and sum(built.dataset.splits.values()) == 1
    assert build_dataset(config).notes == (f"{config.out} is built already",)
    save_edit(run, _edit("img_1", "A wolf.", nouns=["wolf"]))
    with pytest.raises(UserError, match="another state of the runs"):
        build_dataset(config)


def test_a_run_that_nobody_reviewed_keeps_the_identity_of_its_data_sets(run: Folder) -> None:
    reviews = read_run(run.url).reviews
    assert (len(reviews.edits), len(reviews.flags), reviews.files) == (0, 0, ())
    assert _rows(run.url, "SELECT * FROM edits") == [] == _rows(run.url, "SELECT * FROM flags")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "is damaged"),
        (b"[]", "is damaged"),
        (json.dumps({"format_version": 2, "saved_at": "2026-01-01T00:00:00+00:00", "flags": []}).encode(), "format version 2"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(run: Folder, data: bytes, reason: str) -> None:
    run.create("flags/20260101T000000-ab.json", data)
    with pytest.raises(UserError, match=reason) as error:
        read_reviews(run)
    assert "flags/20260101T000000-ab.json" in str(error.value)
