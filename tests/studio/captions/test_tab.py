"""What the components of the captions tab send and show: fields and histograms agree on one filter.

Gradio takes seconds to import, which each process of the suite would do that only looks for its tests.
"""

import dataclasses
import math
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from foundry.errors import UserError
from studio.captions import gallery
from studio.captions.filters import CaptionFilter, Range
from studio.captions.gallery import CaptionsTab, GalleryState
from studio.captions.reviewing import nouns_of
from studio.captions.source import CaptionSource
from studio.captions.sql_box import SqlBox

if TYPE_CHECKING:
    import gradio as gr

    from studio.captions.tab import _Wiring

FIELDS = ("", "any", "any", "", "any")  # text, prompt, status, path, flag
ENDS = ("", "", "", "")
ORDER = "as in the files"


@pytest.fixture
def wiring(source: CaptionSource) -> "_Wiring":
    return _wiring(CaptionsTab([source], SqlBox([source], limit_s=60)))


def _wiring(tab: CaptionsTab) -> "_Wiring":
    from studio.captions.tab import _Wiring

    return _Wiring(tab)


def _bar(**data: Any) -> "gr.EventData":
    import gradio as gr

    return gr.EventData(None, {"clear": "", "shift": False} | data)


def test_a_range_without_a_field_outlives_other_filters_until_all_are_cleared(wiring: "_Wiring") -> None:
    brushed, *_ = wiring.brush(GalleryState(), _bar(figure="num_t5_tokens", low="1", high="5"))
    filtered, *_ = wiring.filter(brushed, 0, "owl", *FIELDS[1:], "3", "", "", "", ORDER)
    assert set(filtered.chosen.ranges) == {
        Range(figure="num_t5_tokens", low=1, high=5),
        Range(figure="num_words", low=3, high=math.inf),
    }
    cleared, *fields = wiring.cleared(filtered)
    state, *_ = wiring.filter(cleared, 0, *fields)
    assert state.chosen == CaptionFilter()


def test_a_bar_of_words_is_written_into_its_fields_and_applying_keeps_it(wiring: "_Wiring") -> None:
    state, *_, words_from, words_to, nouns_from, nouns_to = wiring.brush(
        GalleryState(), _bar(figure="num_words", low="6", high="7")
    )
    assert (words_from, words_to, nouns_from, nouns_to) == ("6", "7", "", "")
    again, *_ = wiring.filter(state, 0, *FIELDS, words_from, words_to, nouns_from, nouns_to, ORDER)
    assert again.chosen == state.chosen
    *_, words_from, words_to, _, _ = wiring.brush(again, _bar(figure="num_words", clear="1"))
    assert (words_from, words_to) == ("", "")


def test_an_open_range_is_named_by_its_end(wiring: "_Wiring") -> None:
    state, _, line, _ = wiring.filter(GalleryState(), 0, *FIELDS, "7", "", "", "2", ORDER)
    (html,) = wiring.histograms(state)
    assert "7 or more" in html and "2 or less" in html and "e+" not in html and "caption" in line


def test_a_range_of_a_figure_that_nothing_has_can_be_cleared(source: CaptionSource) -> None:
    tab = CaptionsTab([source], SqlBox([source], limit_s=60))
    state = dataclasses.replace(GalleryState(), chosen=CaptionFilter(ranges=(Range(figure="aesthetic", low=5, high=6),)))
    assert "any aesthetic score" in tab.histograms(state)


def test_there_is_no_page_before_the_first_and_none_after_the_last(wiring: "_Wiring") -> None:
    ways, state = [], wiring.open(GalleryState())[0]
    for _ in range(3):
        ways.append([button.interactive for button in wiring.ways(state)])
        state = wiring.next(state)[0]
    assert ways == [[False, True], [True, True], [True, False]]


def test_a_chosen_picture_is_there_before_the_tagger_and_its_nouns_are_marked_later(
    source: CaptionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = threading.Event()
    monkeypatch.setattr(gallery, "_HEAD_START_S", 0)
    monkeypatch.setattr(gallery, "nouns_of", lambda *given: loads.wait(20) and nouns_of(*given))
    tab = CaptionsTab([source], SqlBox([source], limit_s=60))
    wiring = _wiring(tab)
    tab.warm_up()
    shown = tab.show(GalleryState())
    page: Any = SimpleNamespace(session_hash="ada")
    first, *_ = wiring.pick(page, shown.state, _bar(pick="1"))
    state, _, _, detail, *_ = wiring.pick(page, shown.state, _bar(pick="2"))
    assert "the tagger is being loaded" in detail and "<mark" not in detail and "An owl sits" in detail
    threading.Timer(0.3, loads.set).start()
    assert "<mark" in wiring.marked(page, state)
    assert not isinstance(wiring.marked(page, first), str)  # another picture was chosen meanwhile
    state, _, _, detail, *_ = wiring.pick(page, shown.state, _bar(pick="2"))
    assert "<mark" in detail and not isinstance(wiring.marked(page, state), str)  # it is not sent again


@pytest.mark.parametrize("given", ["nan", "inf", "-inf", "1e400", "101", "-1e3"])
def test_a_number_beyond_its_limits_is_refused(given: str) -> None:
    from studio.components import GUIDANCE_LIMITS, read_number

    with pytest.raises(UserError, match="guidance: expected -100 to 100, found"):
        read_number(given, name="guidance", limits=GUIDANCE_LIMITS)


@pytest.mark.parametrize("given", ["nan", "inf", "2.5", "two"])
def test_what_is_no_whole_number_is_refused(given: str) -> None:
    from studio.components import read_whole

    with pytest.raises(UserError, match="steps: expected"):
        read_whole(given, name="steps")
    assert read_whole(" 20 ", name="steps") == 20 and read_whole(" ", name="steps") is None
