"""Edits and flags that people make in a gallery: checked, counted as the run counts its captions, saved in the run."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from dataset_builder.concepts.noun_counts import count_captions, load_tagger
from dataset_builder.concepts.t5_view import T5Config
from dataset_builder.concepts.tagger import Noun, TaggerConfig
from dataset_builder.json_text import words_of_json
from dataset_builder.reviews.edited_captions import COUNTED
from dataset_builder.reviews.records import FLAG_VALUES, Edit, Flag, FlagRow, read_reviews, save_edit, save_flags
from dataset_builder.sql.run_files import RunFiles, read_run
from foundry.errors import UserError
from studio.captions.source import CaptionSource
from studio.loading import LOADING


class EditedMeanwhileError(UserError):
    """Somebody else has edited a caption after a person saw it."""


def edit_caption(source: CaptionSource, row: dict[str, Any], text: str, *, seen: str, by: str) -> str:
    """Saves a person's text in place of the caption `seen` of a row and returns a line about it.

    Raises UserError for a text that is empty or the same, and where the run's tagger or tokenizer is not installed, since the
    text is counted as the others are; and EditedMeanwhileError, without saving, if the caption is no longer what was seen.
    """
    by, after = _person(by), text.strip()
    if not after:
        raise UserError("the caption is empty: write one, or flag it as bad to leave it out")
    if after == seen:
        raise UserError("the text is the same as before: nothing was saved")
    folder = source.review_folder(row["run"])
    if source.is_dataset:
        _check_original(folder.url, row)
    counted = _count(source, row["prompt"], after)
    edit = Edit(key=row["key"], prompt=row["prompt"], edited_by=by, before=seen, after=after, counted=counted)
    current = read_reviews(folder).current_edits().get((row["key"], row["prompt"]))
    is_seen = seen == (current["after"] if current else row["caption"])
    if not is_seen or save_edit(folder, edit, replaces=current["file"] if current else "") is None:
        current = read_reviews(folder).current_edits().get((row["key"], row["prompt"]))
        raise EditedMeanwhileError(
            f"{current['edited_by'] if current else 'somebody'} has edited this caption meanwhile: read the new text next "
            "to the image, then save again to replace it by yours"
        )
    words = f"{counted['num_words']:,} words, {counted['num_nouns']:,} nouns"
    return f"saved the caption of {row['key']} ({words}); {_next_step(source)}"


def flag_captions(source: CaptionSource, rows: Sequence[dict[str, Any]], flag: Flag | Literal[""], *, by: str) -> str:
    """Saves a flag for these rows, or takes theirs back, and returns a line about it. Raises UserError for another flag."""
    if flag and flag not in FLAG_VALUES:
        raise UserError(f"expected a flag among {', '.join(FLAG_VALUES)}, found {flag}")
    person = _person(by)
    for run in dict.fromkeys(row["run"] for row in rows):
        flags = [
            FlagRow(key=row["key"], prompt=row["prompt"], flagged_by=person, flag=flag) for row in rows if row["run"] == run
        ]
        save_flags(source.review_folder(run), flags)
    number = f"{len(rows)} caption{'' if len(rows) == 1 else 's'}"
    return f"flagged {number} as {flag}" if flag else f"took back the flag of {number}"


def nouns_of(source: CaptionSource, rows: Sequence[dict[str, Any]]) -> list[list[Noun]]:
    """The nouns of the captions of these rows, where they are in the text. Raises UserError if the tagger is not installed."""
    with LOADING:
        return load_tagger(_tagger(source)).tag([source.words(row) for row in rows])


def _count(source: CaptionSource, prompt: str, text: str) -> dict[str, Any]:
    """The columns COUNTED of a text. Raises UserError for one that must be JSON and is none."""
    words = text
    if prompt in source.structured:
        try:
            json.loads(text)
        except ValueError as error:
            raise UserError(f"captions of the prompt {prompt} are JSON, and this is none ({error}): correct it") from None
        words = words_of_json(text)
    t5 = T5Config.as_described(source.stored.settings.get("t5"), default=T5Config())
    with LOADING:
        rows, _ = count_captions([text], words=[words], prompt=prompt, tagger=_tagger(source), t5=t5)
    return {name: rows[0].get(name, "ok") for name in COUNTED}


def _tagger(source: CaptionSource) -> TaggerConfig:
    return TaggerConfig.as_described(source.stored.settings.get("tagger"), default=TaggerConfig())


def _check_original(url: str, row: dict[str, Any]) -> None:
    """Raises UserError if the run no longer has the caption that a data set shows: it was renamed or built from other files."""
    run: RunFiles = read_run(url)
    from dataset_builder.sql.database import open_files
    from dataset_builder.sql.views import literal

    where = f"key = {literal(row['key'])} AND prompt = {literal(row['prompt'])}"
    with open_files(run) as database:
        found = database.fetch(f"SELECT caption FROM captions WHERE {where}")["caption"].to_pylist()
    if not found:
        raise UserError(f"{url} has no caption of {row['key']} under {row['prompt']}: open the run itself and edit it there")


def _person(name: str) -> str:
    if not name.strip():
        raise UserError("expected your name, which is saved with what you change: fill it in")
    return name.strip()


def _next_step(source: CaptionSource) -> str:
    return "build the data set again to have it there" if source.is_dataset else "data sets that you build now have it"
