"""The data dictionary of the documentation is that of the schemas."""

from pathlib import Path

from captioner.cleaning import STATUSES
from dataset_builder.exports.dictionary import PAGE, dictionary_page
from dataset_builder.sql import dataset_files, run_files
from dataset_builder.sql.columns import CARRIED, COLUMNS

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / PAGE).read_text(encoding="utf-8") == dictionary_page(), "run `make reference`"


def test_the_page_explains_every_view_and_column() -> None:
    page = dictionary_page()
    assert CARRIED not in page
    assert all(f"### `{view}`" in page for view in (*run_files.VIEWS, *dataset_files.VIEWS, "losses"))


def test_the_statuses_of_captions_are_listed() -> None:
    assert all(status in COLUMNS["status"] for status in STATUSES)
