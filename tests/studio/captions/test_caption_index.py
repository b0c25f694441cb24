"""The index answers as the run's own files do: each caption on one page, filters, counts and histograms that agree."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from dataset_builder.dataset.building import build_dataset
from dataset_builder.dataset.recipe import BuildConfig
from dataset_builder.sql.dataset_files import open_stored
from dataset_builder.sql.run_files import read_run
from foundry.errors import UserError
from foundry.storage.folder import Folder
from studio.captions.caption_index import Cursor, Order, Page
from studio.captions.filters import CaptionFilter, Range
from studio.captions.index_file import SUFFIX, open_index, pieces_of, state_digest, write_index
from studio.captions.source import CaptionSource, open_sources
from tests.studio.world import PictureRun

ALL = CaptionFilter()


def _rows(url: str, sql: str) -> list[dict[str, Any]]:
    with open_stored(url) as database:
        return database.fetch(sql).to_pylist()  # type: ignore[no-any-return]


def _all_pages(source: CaptionSource, chosen: CaptionFilter, order: Order, *, size: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after: Cursor | None = None
    while True:
        page: Page = source.index().page(chosen, order, after=after, size=size)
        found += page.rows
        after = page.after
        if after is None:
            return found


@pytest.mark.parametrize("order", [Order(), Order(figure="num_words"), Order(figure="density", direction="descending")])
@pytest.mark.parametrize("size", [7, 60, 200])
def test_pages_hold_each_caption_once_in_their_order(source: CaptionSource, order: Order, size: int) -> None:
    rows = _all_pages(source, ALL, order, size=size)
    said = [(row["key"], row["prompt"], row["caption"]) for row in rows]
    expected = _rows(source.url, "SELECT key, prompt, caption FROM captions")
    assert sorted(said) == sorted((row["key"], row["prompt"], row["caption"]) for row in expected)
    figures = [row[order.figure] for row in rows] if order.figure else [row["n"] for row in rows]
    assert figures == sorted(figures, reverse=order.direction == "descending")


@pytest.mark.parametrize(
    ("chosen", "where"),
    [
        (CaptionFilter(text="OWL"), "contains(lower(caption), 'owl')"),
        (CaptionFilter(text="100 %_"), "contains(lower(caption), '100 %_')"),
        (CaptionFilter(text="' OR 1=1 --"), "false"),
        (CaptionFilter(prompt="short", text="tree"), "prompt = 'short' AND contains(lower(caption), 'tree')"),
        (CaptionFilter(status="ok"), "status = 'ok'"),
        (CaptionFilter(ranges=(Range(figure="num_words", low=7, high=9),)), "num_words BETWEEN 7 AND 9"),
        (CaptionFilter(source="img_1"), "key LIKE 'img_1%'"),
        (CaptionFilter(flag="no flag"), "true"),
        (CaptionFilter(flag="bad"), "false"),
    ],
)
def test_a_filter_keeps_what_sql_keeps(source: CaptionSource, chosen: CaptionFilter, where: str) -> None:
    expected = _rows(source.url, f"SELECT count(*)::INT AS n FROM captions WHERE {where}")[0]["n"]
    index = source.index()
    assert index.count(chosen) == expected == len(_all_pages(source, chosen, Order(), size=9))
    for bins in index.histograms(chosen):
        assert sum(bins.counts) == expected


def test_bins_of_a_count_are_whole_and_choosing_one_finds_as_many_captions_as_it_shows(source: CaptionSource) -> None:
    index = source.index()
    (words,) = (one for one in index.histograms(ALL) if one.figure == "num_words")
    assert all(low == int(low) and high == int(high) for low, high in words.bins)
    assert all(high + 1 == low for (_, high), (low, _) in zip(words.bins[:-1], words.bins[1:], strict=True))
    for (low, high), count in zip(words.bins, words.counts, strict=True):
        assert index.count(CaptionFilter(ranges=(Range(figure="num_words", low=low, high=high),))) == count


def test_filters_beyond_those_that_are_kept_are_asked_again(source: CaptionSource) -> None:
    texts = [f"{letter}" for letter in "abcdefghijklmnop"]
    first = [source.index().count(CaptionFilter(text=text)) for text in texts]
    assert [source.index().count(CaptionFilter(text=text)) for text in texts] == first
    assert len(source.index()._hits) <= 8


def test_an_index_of_a_grown_run_reads_the_new_files_alone(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    run = PictureRun(pictures=tmp_path / "pictures", num_committed=2)
    folder = run.write(Folder(str(tmp_path / "run")))
    cache = tmp_path / "cache"
    before = read_run(folder.url)
    old = cache / f"{state_digest(pieces_of(before))}{SUFFIX}"
    write_index(old, before, pieces_of(before), on_progress=lambda *_: None)
    kept = [Path(folder.root) / piece.captions for piece in pieces_of(before)]
    run.commit(folder, 2, range(20, 30))
    after = read_run(folder.url)
    for path in kept:
        path.rename(path.with_suffix(".away"))  # whoever read these again would fail
    new = cache / f"{state_digest(pieces_of(after))}{SUFFIX}"
    write_index(new, after, pieces_of(after), on_progress=lambda *_: None)
    assert new != old and not old.exists()
    with open_index(new) as connection:
        found = connection.execute("SELECT count(*), count(DISTINCT n), count(DISTINCT piece) FROM idx.rows").fetchone()
    assert found == (60, 60, 3)


def test_an_index_that_cannot_be_written_is_said_to_those_who_wait(run: str, tmp_path: Path) -> None:
    with open_sources([run], cache=tmp_path / "cache") as (source,):
        source.index()
        shutil.rmtree(tmp_path / "cache")
        next(Path(Folder(run).root).glob("captions/*2-*.parquet")).write_bytes(b"no Parquet")
    with open_sources([run], cache=tmp_path / "cache") as (source,), pytest.raises(UserError, match="cannot be written"):
        source.index()


def test_a_data_set_has_a_row_for_each_caption_and_the_runs_name(run: str, tmp_path: Path) -> None:
    out = str(tmp_path / "dataset")
    build_dataset(BuildConfig(captions=(run,), out=out))
    with open_sources([out], cache=tmp_path / "cache") as (source,):
        rows = source.index().page(ALL, size=100).rows
        assert source.is_dataset
    assert len(rows) == 60 and {row["run"] for row in rows} == {"run"}
    assert {row["uri"] for row in rows} == {str(tmp_path / "pictures" / f"img_{number}.png") for number in range(30)}


def test_what_is_neither_run_nor_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run nor a data set"), open_sources([str(tmp_path)], cache=tmp_path):
        pass
