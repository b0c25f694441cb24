"""The captions tab: pages, filters, details, edits, flags and SQL; and nothing that a run holds becomes HTML."""

import re
import shutil
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dataset_builder.dataset.building import build_dataset
from dataset_builder.dataset.recipe import BuildConfig
from dataset_builder.reviews.records import read_reviews
from foundry.errors import UserError
from foundry.storage.folder import Folder
from studio.captions.caption_index import Cursor
from studio.captions.filters import CaptionFilter, Range
from studio.captions.gallery import ORDERS, CaptionsTab, GalleryState
from studio.captions.pictures import Pictures
from studio.captions.reviewing import EditedMeanwhileError
from studio.captions.source import PREVIEW, CaptionSource, open_sources
from studio.captions.sql_box import SqlBox
from tests.studio.world import HOSTILE, PictureRun


class _Page(HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "img":
            assert dict(attrs).get("alt")

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def tab(source: CaptionSource) -> CaptionsTab:
    return CaptionsTab([source], SqlBox([source], limit_s=60))


def _picks(html: str) -> list[int]:
    return [int(number) for number in re.findall(r'data-pick="(\d+)"', html)]


def _picked(tab: CaptionsTab, text: str = "") -> GalleryState:
    shown = tab.show(tab.filtered(GalleryState(), CaptionFilter(text=text, prompt="dense")))
    return tab.pick(shown.state, _picks(shown.gallery)[0])


def test_pages_go_forth_and_back(tab: CaptionsTab) -> None:
    first = tab.show(GalleryState())
    second = tab.next_page(first.state)
    assert len(_picks(first.gallery)) == 24 and not set(_picks(first.gallery)) & set(_picks(second.gallery))
    assert (first.line, second.line) == ("60 captions, page 1 of 3", "60 captions, page 2 of 3")
    assert tab.previous_page(second.state).gallery == first.gallery
    last = tab.next_page(second.state)
    assert len(_picks(last.gallery)) == 12 and tab.next_page(last.state).gallery == last.gallery


def test_a_page_of_the_preview_is_followed_by_the_next_one_of_the_index(source: CaptionSource) -> None:
    tab = CaptionsTab([source], SqlBox([source], limit_s=60))
    preview = source._preview
    assert preview is not None
    rows = preview.page(CaptionFilter()).rows
    shown = GalleryState(version=PREVIEW, following=Cursor(n=rows[-1]["n"]))
    after = {row["n"] for row in source.index().rows(_picks(tab.next_page(shown).gallery))}
    first = source.index().page(CaptionFilter()).rows
    assert [row["key"] for row in first] == [row["key"] for row in rows]
    assert not after & {row["n"] for row in first} and len(after) == 24


def test_a_run_that_grows_is_followed_and_pages_stay_with_their_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studio.captions.source._LOOK_AGAIN_S", 0.0)
    (tmp_path / "pictures").mkdir()
    run = PictureRun(pictures=tmp_path / "pictures", num_committed=2)
    folder = run.write(Folder(str(tmp_path / "run")))
    with open_sources([folder.url], cache=tmp_path / "cache") as (source,):
        tab = CaptionsTab([source], SqlBox([source], limit_s=60))
        before = source.index()
        first = tab.show(GalleryState())
        run.commit(folder, 2, range(20, 30))
        tab.refresh()
        _written(source)
        assert source.index() is not before
        assert tab.show(GalleryState()).line == "60 captions, page 1 of 3"
        second = tab.next_page(first.state)
        assert (first.line, second.line) == ("40 captions, page 1 of 2", "40 captions, page 2 of 2")
        assert len(set(_picks(first.gallery) + _picks(second.gallery))) == 40
        assert tab.pick(second.state, _picks(second.gallery)[0]).seen
        assert tab.show(tab.filtered(second.state, CaptionFilter(prompt="dense"))).line == "30 captions, page 1 of 2"


def test_new_files_that_cannot_be_read_leave_the_captions_that_are_there(
    source: CaptionSource, tab: CaptionsTab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("studio.captions.source._LOOK_AGAIN_S", 0.0)
    shutil.rmtree(source.url)
    source.follow()
    _written(source)
    assert "is gone: restore it, or open another run): earlier captions are shown" in capsys.readouterr().out
    assert tab.show(GalleryState()).line == "60 captions, page 1 of 3"


def _written(source: CaptionSource) -> None:
    assert source._writer is not None
    source._writer.join(timeout=60)


def test_hostile_captions_and_keys_are_text(tab: CaptionsTab) -> None:
    state = _picked(tab, "onerror")
    for html in (
        tab.show(state).gallery,
        tab.detail(state),
        tab.sql.ask(0, "SELECT caption FROM captions WHERE key = 'img_25'") or "",
    ):
        page = _Page(html)
        assert HOSTILE in page.words
        assert not {"script", "iframe"} & set(page.tags)
        assert "${" not in html and "{{" not in html and "`" not in html
        assert all(address.startswith("/pictures/") for address in page.addresses)


def test_a_detail_shows_all_prompts_with_nouns_marked(tab: CaptionsTab) -> None:
    html = tab.detail(_picked(tab, "sits"))
    assert '<mark title="owl">owl</mark>' in html and '<mark title="house">house</mark>' in html
    assert re.findall(r"<h4>(\w+)", html) == ["dense", "short"]


def test_a_bar_filters_extends_and_is_cleared(tab: CaptionsTab) -> None:
    state = tab.brushed(GalleryState(), figure="num_words", low=6, high=7, extends=False)
    assert tab.show(state).line.startswith("20 captions")
    wider = tab.brushed(state, figure="num_words", low=12, high=12, extends=True)
    assert (wider.chosen.ranges[0].low, wider.chosen.ranges[0].high) == (6, 12)
    assert 'aria-pressed="true"' in tab.histograms(wider) and "any words" in tab.histograms(wider)
    assert tab.unbrushed(wider, figure="num_words").chosen == CaptionFilter()


def test_every_order_can_be_shown(tab: CaptionsTab) -> None:
    for order in ORDERS:
        shown = tab.show(tab.filtered(GalleryState(), CaptionFilter(), order))
        is_scored = ORDERS[order].figure not in ("clip_mean", "aesthetic")
        assert bool(_picks(shown.gallery)) == is_scored


def test_an_edit_is_counted_shown_found_and_saved_with_its_author(tab: CaptionsTab, source: CaptionSource) -> None:
    state = _picked(tab, "sits")
    said = tab.edit(state, prompt="dense", text="A red fox and two dogs. <b>", by="Ada")
    assert "7 words, 2 nouns" in said
    row = read_reviews(source.review_folder()).edits.to_pylist()[0]
    assert (row["edited_by"], row["before"], row["after"]) == (
        "Ada",
        "An owl sits beside a house. dense",
        "A red fox and two dogs. <b>",
    )
    assert (row["num_words"], row["nouns"], row["status"]) == (7, ["fox", "dog"], "ok")
    found = tab.show(tab.filtered(state, CaptionFilter(text="red fox")))
    assert found.line.startswith("1 caption,") and "edited" in found.gallery
    edited = tab.show(tab.filtered(state, CaptionFilter(flag="edited")))
    assert edited.line.startswith("1 caption,")
    detail = tab.detail(tab.pick(edited.state, _picks(edited.gallery)[0]))
    assert "7 words · 2 different nouns" in detail and "the original: An owl sits beside a house. dense" in detail
    assert tab.show(tab.filtered(state, CaptionFilter(text="sits", prompt="dense"))).line.startswith("9 captions")


def test_filters_order_and_histograms_count_an_edit_as_build_does(tab: CaptionsTab, source: CaptionSource) -> None:
    text = "A fox, a dog, a cat, a hen and an owl sit on the long and very old wooden bench."
    tab.edit(_picked(tab, "sits"), prompt="dense", text=text, by="Ada")
    edit = read_reviews(source.review_folder()).edits.to_pylist()[0]
    chosen = CaptionFilter(ranges=(Range(figure="num_words", low=edit["num_words"], high=edit["num_words"]),))
    assert "A fox, a dog" in tab.show(tab.filtered(GalleryState(), chosen)).gallery
    first = tab.show(tab.filtered(GalleryState(), CaptionFilter(), "most words"))
    assert _picks(first.gallery) and "A fox, a dog" in first.gallery[: first.gallery.index("</li>")]
    for bins in source.index().histograms(CaptionFilter()):
        for (low, high), count in zip(bins.bins, bins.counts, strict=True):
            within = CaptionFilter(ranges=(Range(figure=bins.figure, low=low, high=high),))
            if bins.figure != "mean_logprob":  # bins of a figure that is not whole share their ends
                assert source.index().count(within) == count
    tokens = next(one for one in source.index().histograms(CaptionFilter()) if one.figure == "num_words")
    assert sum(tokens.counts) == 60 and tokens.bins[-1][1] >= edit["num_words"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text": "  "}, "the caption is empty"),
        ({"by": " "}, "your name"),
        ({"prompt": "other"}, "no caption of the prompt other"),
        ({"text": "An owl sits beside a house. dense"}, "the same as before"),
    ],
)
def test_an_edit_that_says_nothing_is_refused(tab: CaptionsTab, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        tab.edit(_picked(tab, "sits"), **({"prompt": "dense", "text": "A fox.", "by": "Ada"} | changes))


def test_of_two_people_who_edit_one_caption_the_second_is_told(run: str, tmp_path: Path, tab: CaptionsTab) -> None:
    with open_sources([run], cache=tmp_path / "other") as (other,):
        other.index()
        theirs = CaptionsTab([other], SqlBox([other], limit_s=60))
        state = _picked(theirs, "sits")
        tab.edit(_picked(tab, "sits"), prompt="dense", text="A fox.", by="Ada")
        with pytest.raises(EditedMeanwhileError, match="Ada has edited this caption meanwhile"):
            theirs.edit(state, prompt="dense", text="A dog.", by="Bob")
        assert theirs.picked_rows(state)[0]["edited"] == "A fox."  # what the message asks to read
        theirs.edit(theirs.look(state), prompt="dense", text="A dog.", by="Bob")
        again = _picked(tab)
        assert dict(again.seen)["dense"] == "A dog."  # choosing a picture reads what others saved
        stale = tab.pick(again, again.picked or 0)
        tab.edit(again, prompt="dense", text="A hen.", by="Ada")
        with pytest.raises(EditedMeanwhileError, match="Ada has edited"):  # in one studio, whose index knows the hen already
            tab.edit(stale, prompt="dense", text="A cat.", by="Bob")


def test_of_two_people_who_save_at_once_one_is_told(tab: CaptionsTab, source: CaptionSource) -> None:
    state = _picked(tab, "sits")
    begun, told = threading.Barrier(4), []

    def save(text: str) -> None:
        begun.wait()
        try:
            tab.edit(state, prompt="dense", text=text, by=text)
        except EditedMeanwhileError:
            told.append(text)

    threads = [threading.Thread(target=save, args=(f"Fox {number}.",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (row,) = read_reviews(source.review_folder()).edits.to_pylist()
    assert len(told) == 3 and row["after"] not in told


def test_flags_are_set_filtered_and_taken_back(tab: CaptionsTab) -> None:
    state = _picked(tab, "sits")
    assert tab.flag(state, prompts=["dense", "short"], flag="look again", by="Ada") == "flagged 2 captions as look again"
    assert tab.show(tab.filtered(state, CaptionFilter(flag="look again"))).line.startswith("2 captions")
    assert "took back" in tab.flag(state, prompts=["dense"], flag="", by="Ada")
    assert tab.show(tab.filtered(state, CaptionFilter(flag="look again"))).line.startswith("1 caption,")
    with pytest.raises(UserError, match="expected a flag among"):
        tab.flag(state, prompts=["dense"], flag="<b>", by="Ada")


def test_a_caption_of_a_data_set_is_edited_in_its_run(run: str, tmp_path: Path) -> None:
    out = str(tmp_path / "dataset")
    build_dataset(BuildConfig(captions=(run,), out=out))
    with open_sources([out, run], cache=tmp_path / "cache") as sources:
        sources[0].index()
        sources[1].index()
        tab = CaptionsTab(sources, SqlBox(sources, limit_s=60))
        said = tab.edit(_picked(tab, "sits"), prompt="dense", text="A fox.", by="Ada")
        assert "build the data set again" in said
        assert "A fox." in tab.detail(_picked(tab, "fox")).replace('<mark title="fox">fox</mark>', "fox")
    assert read_reviews(tab.sources[1].review_folder()).edits.num_rows == 1


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("", "expected a query"),
        ("DROP TABLE captions", "not allowed"),
        ("SELECT * FROM read_text('/etc/passwd')", "only reads the views"),
        ("SELECT * FROM read_parquet('/tmp/*.parquet')", "only reads the views"),
        ("SELECT nothing FROM captions", "there is no column nothing"),
        ("SELECT 1; SELECT 2", "one SQL statement"),
    ],
)
def test_sql_is_that_of_query_and_reads_nothing_else(tab: CaptionsTab, question: str, reason: str) -> None:
    page = _Page(tab.sql.ask(0, question) or "")
    assert reason in page.words and "root:" not in page.words and "table" not in page.tags


def test_pictures_are_small_kept_within_their_bound_and_asked_for_by_row(source: CaptionSource) -> None:
    numbers = [row["n"] for row in source.index().page(CaptionFilter(prompt="dense")).rows]
    version = source.index().name
    pictures = Pictures([source], cache_bytes=3000)
    for number in numbers:
        found = pictures.get(0, version, number, "small")
        assert found is not None and found.data.startswith(b"\xff\xd8") and not found.problem
    assert 0 < pictures.num_bytes <= 3000
    assert pictures.get(0, version, 10**9, "small") is None
    assert pictures.get(7, version, numbers[0], "small") is None
    assert pictures.get(0, "../../etc", numbers[0], "small") is None


def test_an_image_that_is_gone_or_another_is_a_notice_that_says_so(source: CaptionSource, tmp_path: Path) -> None:
    rows = {row["key"]: row["n"] for row in source.index().page(CaptionFilter(prompt="dense"), size=30).rows}
    (tmp_path / "pictures" / "img_0.png").unlink()
    (tmp_path / "pictures" / "img_1.png").write_bytes(b"<svg onload=alert(1)>")
    pictures = Pictures([source])
    gone, other = (pictures.get(0, source.index().name, rows[key], "large") for key in ("img_0", "img_1"))
    assert gone is not None and other is not None
    assert gone.media_type == other.media_type == "image/svg+xml"
    assert "img_0.png" in gone.problem and "changed" in other.problem
    assert b"onload" not in other.data and pictures.num_bytes == 0
