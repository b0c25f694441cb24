"""Components of the captions tab and what they call."""

import getpass
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from dataset_builder.reviews.records import FLAG_VALUES
from foundry.errors import UserError
from studio.captions.filters import EDITED, FIGURES, UNFLAGGED, CaptionFilter, Range
from studio.captions.gallery import ORDERS, CaptionsTab, GalleryState, Shown
from studio.captions.reviewing import EditedMeanwhileError
from studio.components import KEEP_DETAIL, PICK, PRIVATE, SHOW_DETAIL, announced, hint, number_box, read_number
from studio.html import failure, quiet, reason

_LOOK_S = 0.2
_ANY = "any"
_NOTHING = quiet("Choose a picture to see its captions side by side, to edit one or to flag it.")
_SQL = "SELECT prompt, count(*) AS captions, avg(num_nouns) AS nouns FROM captions GROUP BY prompt"


def add_captions_tab(tab: CaptionsTab, page: gr.Blocks) -> None:
    """Adds the components to the tab that is open."""
    state = gr.State(GalleryState())
    titles = [(source.title, number) for number, source in enumerate(tab.sources)]
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            filters = _filters(titles)
            with gr.Row():
                apply = gr.Button("Apply filters", variant="primary", elem_id="apply")
                clear = gr.Button("Clear")
            with gr.Accordion("Histograms", open=True):
                histograms = gr.HTML(quiet("…"), elem_id="histograms", js_on_load=PICK)
        with gr.Column(scale=3, min_width=420):
            line = gr.HTML(quiet("Opening …"), elem_id="line")
            gallery = gr.HTML(elem_id="gallery", js_on_load=PICK)
            with gr.Row():
                previous = gr.Button("Previous page", elem_id="previous")
                following = gr.Button("Next page", elem_id="next")
        with gr.Column(scale=2, min_width=440, elem_id="beside"):
            detail = gr.HTML(_NOTHING, elem_id="detail")
            review = _review()
    shown = [state, gallery, line]
    wiring = _Wiring(tab)
    _add_sql(wiring, state)
    inputs = [state, *filters.values()]
    pages: list[Any] = []
    for trigger, handler, given in (
        (page.load, wiring.open, [state]),
        (filters["source"].change, wiring.filter, inputs),
        (apply.click, wiring.filter, inputs),
        (filters["text"].submit, wiring.filter, inputs),
    ):
        pages.append(trigger(handler, given, [*shown, detail], **PRIVATE))
    ends = [filters[name] for names in _BOUNDED.values() for name in names]
    pages.append(histograms.select(wiring.brush, [state], [*shown, detail, *ends], **PRIVATE))
    for event in pages[:2]:  # another source may have other prompts and statuses
        event.then(wiring.choices, [state], [filters["prompt"], filters["status"]], **PRIVATE)
    cleared = clear.click(wiring.cleared, [state], [state, *(filters[name] for name in _CLEARED)], **PRIVATE)
    pages.append(cleared.then(wiring.filter, inputs, [*shown, detail], **PRIVATE))
    for event in pages:
        event.then(wiring.histograms, [state], histograms, **PRIVATE)
    following.click(wiring.next, [state], [*shown, detail], **PRIVATE)
    previous.click(wiring.previous, [state], [*shown, detail], **PRIVATE)
    line.change(wiring.ways, [state], [previous, following], show_progress="hidden", **PRIVATE)
    _wire_review(wiring, state=state, shown=[*shown, detail], review=review, gallery=gallery)


def _add_sql(wiring: "_Wiring", state: gr.State) -> None:
    with gr.Accordion("SQL", open=False):
        hint("The views and macros of t2i query, read-only; docs/sql lists them.")
        question = gr.Textbox(_SQL, label="SQL query", lines=3, elem_id="sql")
        with gr.Row():
            ask = gr.Button("Run query", elem_id="ask")
            stop = gr.Button("Stop query", elem_id="stop_query")
        answer = gr.HTML(elem_id="answer")
    ask.click(wiring.ask, [state, question], answer, trigger_mode="multiple", **PRIVATE)
    stop.click(wiring.stop_query, None, None, **PRIVATE)


def _wire_review(wiring: "_Wiring", *, state: gr.State, shown: list[Any], review: dict[str, Any], gallery: gr.HTML) -> None:
    """What happens when a picture is chosen, and when its caption is edited or flagged."""
    prompt, text, by, message = (review[name] for name in ("prompt", "text", "by", "message"))
    picked = gallery.select(wiring.pick, [state], [*shown, prompt, text, message], **PRIVATE)
    picked.then(None, None, None, js=SHOW_DETAIL, **PRIVATE)
    marked = picked.then(wiring.marked, [state], shown[-1], show_progress="hidden", **PRIVATE)
    marked.then(None, None, None, js=KEEP_DETAIL, **PRIVATE)
    prompt.change(wiring.text_of, [state, prompt], text, **PRIVATE)
    for button, handler, value in ((review["save"], wiring.edit, text), (review["set"], wiring.flag, review["flag"])):
        button.click(handler, [state, prompt, value, by], [*shown, message], **PRIVATE)


_BOUNDED = {"num_words": ("words_from", "words_to"), "density": ("density_from", "density_to")}
"""Figures that have fields for their ends; the others have their histogram alone."""
_CLEARED = ("text", "prompt", "status", "path", "flag", "words_from", "words_to", "density_from", "density_to", "order")


def _filters(titles: list[tuple[str, int]]) -> dict[str, Any]:
    """The components of the filters, in the order in which `_Wiring.filter` takes their values."""
    filters: dict[str, Any] = {
        "source": gr.Dropdown(titles, value=0, label="Run or data set, and its model", elem_id="source"),
        "text": gr.Textbox(label="Text in the caption", placeholder="red owl", elem_id="text"),
        "prompt": gr.Dropdown([_ANY], value=_ANY, label="Prompt", elem_id="prompt"),
        "status": gr.Dropdown([_ANY], value=_ANY, label="State of the caption"),
        "path": gr.Textbox(label="Source (part of its path)"),
        "flag": gr.Dropdown([_ANY, *FLAG_VALUES, UNFLAGGED, EDITED], value=_ANY, label="Flag", elem_id="flag_filter"),
    }
    with gr.Row():
        filters["words_from"] = number_box("Words from", empty="0", elem_id="words_from")
        filters["words_to"] = number_box("Words to", empty="any")
    with gr.Row():
        filters["density_from"] = number_box("Different nouns from", empty="0")
        filters["density_to"] = number_box("Different nouns to", empty="any")
    filters["order"] = gr.Dropdown(list(ORDERS), value=next(iter(ORDERS)), label="Order")
    return filters


def _review() -> dict[str, Any]:
    with gr.Accordion("Edit and flag the chosen caption", open=True):
        with gr.Row():
            prompt = gr.Dropdown([], label="Caption of the prompt", elem_id="review_prompt")
            by = gr.Textbox(getpass.getuser(), label="Your name, saved with the change", elem_id="by")
        written = gr.Textbox(label="Caption", lines=4, elem_id="edited")
        with gr.Row():
            save = gr.Button("Save the caption", variant="primary", elem_id="save")
            flag = gr.Radio([*FLAG_VALUES, "none"], label="Flag", value=FLAG_VALUES[0], elem_id="flag")
            set_flag = gr.Button("Set the flag", elem_id="set_flag")
        message = gr.HTML(elem_id="message")
    return {"prompt": prompt, "by": by, "text": written, "save": save, "flag": flag, "set": set_flag, "message": message}


class _Wiring:
    """Values of components to values of the tab, and back; an error is shown where the result would be."""

    def __init__(self, tab: CaptionsTab) -> None:
        self._tab = tab
        self._latest: dict[str | None, tuple[int, int | None]] = {}

    def open(self, state: GalleryState) -> list[Any]:
        def fresh() -> Shown:
            self._tab.refresh()
            return self._tab.show(state)

        return self._shown(fresh, state)

    def filter(self, state: GalleryState, source: int, *values: Any) -> list[Any]:
        text, prompt, status, path, flag, words_from, words_to, density_from, density_to, order = values
        bounds = dict(zip(_BOUNDED, ((words_from, words_to), (density_from, density_to)), strict=True))
        try:
            ranges = [_range(figure, low, high) for figure, (low, high) in bounds.items()]
        except UserError as error:
            return [state, gr.skip(), failure(str(error)), gr.skip()]
        chosen = CaptionFilter(
            text=(text or "").strip(),
            prompt=_chosen(prompt),
            status=_chosen(status),
            source=(path or "").strip(),
            flag=_chosen(flag),
            ranges=(*(one for one in state.chosen.ranges if one.figure not in _BOUNDED), *(one for one in ranges if one)),
        )
        now = self._tab.filtered(replace(state, source=source), chosen, order)
        return self._shown(lambda: self._tab.show(now), now)

    def ask(self, request: gr.Request, state: GalleryState, question: str) -> Any:
        answer = self._tab.sql.ask(state.source, question or "", person=request.session_hash or "")
        return gr.skip() if answer is None else answer

    def stop_query(self, request: gr.Request) -> None:
        self._tab.sql.stop(request.session_hash or "")

    def cleared(self, state: GalleryState) -> list[Any]:
        return [replace(state, chosen=CaptionFilter()), "", _ANY, _ANY, "", _ANY, "", "", "", "", next(iter(ORDERS))]

    def brush(self, state: GalleryState, event: gr.EventData) -> list[Any]:
        if event.clear:
            now = self._tab.unbrushed(state, figure=event.figure)
        else:
            now = self._tab.brushed(
                state, figure=event.figure, low=float(event.low), high=float(event.high), extends=bool(event.shift)
            )
        return [*self._shown(lambda: self._tab.show(now), now), *_ends(now.chosen)]

    def histograms(self, state: GalleryState) -> Iterator[str]:
        source = self._tab.sources[state.source]
        if not source.is_indexed:
            yield quiet(source.progress)
        try:
            yield self._tab.histograms(state)
        except UserError as error:
            yield failure(str(error))

    def choices(self, state: GalleryState) -> list[Any]:
        prompts, statuses = self._tab.choices(state)
        now = state.chosen
        return [
            gr.Dropdown([_ANY, *prompts], value=now.prompt or _ANY),
            gr.Dropdown([_ANY, *statuses], value=now.status or _ANY),
        ]

    def ways(self, state: GalleryState) -> list[Any]:
        """Whether there is a page before and one after this one."""
        return [gr.Button(interactive=len(state.starts) > 1), gr.Button(interactive=state.following is not None)]

    def next(self, state: GalleryState) -> list[Any]:
        return self._shown(lambda: self._tab.next_page(state), state)

    def previous(self, state: GalleryState) -> list[Any]:
        return self._shown(lambda: self._tab.previous_page(state), state)

    def pick(self, request: gr.Request, state: GalleryState, event: gr.EventData) -> list[Any]:
        try:
            now = replace(self._tab.pick(state, int(event.pick)), awaits_nouns=not self._tab.marks_nouns)
            shown, detail = self._tab.show(now), self._tab.detail(now, waits=False)
        except UserError as error:
            return [state, gr.skip(), announced(failure(str(error))), gr.skip(), gr.skip(), gr.skip(), gr.skip()]
        self._latest[request.session_hash] = (shown.state.source, shown.state.picked)
        prompt, text = now.seen[0]
        prompts = gr.Dropdown([prompt for prompt, _ in now.seen], value=prompt)
        return [shown.state, shown.gallery, announced(quiet(shown.line)), detail, prompts, text, ""]

    def marked(self, request: gr.Request, state: GalleryState) -> Any:
        """The detail again, once its nouns can be marked, unless another picture was chosen meanwhile."""
        while state.awaits_nouns and not self._tab.marks_nouns:
            time.sleep(_LOOK_S)
        if not state.awaits_nouns or self._latest.get(request.session_hash) != (state.source, state.picked):
            return gr.skip()
        try:
            return self._tab.detail(state)
        except UserError as error:
            return failure(str(error))

    def text_of(self, state: GalleryState, prompt: str) -> Any:
        return dict(state.seen).get(prompt, gr.skip())

    def edit(self, state: GalleryState, prompt: str, text: str, by: str) -> list[Any]:
        return self._reviewed(state, lambda: self._tab.edit(state, prompt=prompt or "", text=text, by=by), looks=True)

    def flag(self, state: GalleryState, prompt: str, flag: str, by: str) -> list[Any]:
        chosen = "" if flag == "none" else flag
        return self._reviewed(state, lambda: self._tab.flag(state, prompts=[prompt or ""], flag=chosen, by=by))

    def _reviewed(self, state: GalleryState, act: Callable[[], str], *, looks: bool = False) -> list[Any]:
        """`looks`: whether the person then knows the new text, which the next edit replaces."""
        try:
            said = announced(quiet(act()))
        except EditedMeanwhileError as error:
            said = failure(str(error))
        except (UserError, ModuleNotFoundError) as error:
            return [state, gr.skip(), gr.skip(), gr.skip(), failure(reason(error))]
        try:
            now = self._tab.look(state) if looks else state
            shown, detail = self._tab.show(now), self._tab.detail(now)
        except UserError as error:
            return [state, gr.skip(), failure(str(error)), gr.skip(), said]
        return [shown.state, shown.gallery, announced(quiet(shown.line)), detail, said]

    def _shown(self, show: Callable[[], Shown], state: GalleryState) -> list[Any]:
        try:
            shown = show()
        except UserError as error:
            return [state, gr.skip(), failure(str(error)), gr.skip()]
        return [shown.state, shown.gallery, announced(quiet(shown.line)), _NOTHING]


def _chosen(value: str | None) -> str:
    return "" if value in (None, _ANY) else str(value)


def _range(figure: str, given_low: str, given_high: str) -> Range | None:
    low, high = (read_number(given, name=FIGURES[figure]) for given in (given_low, given_high))
    if low is None and high is None:
        return None
    return Range(figure=figure, low=-math.inf if low is None else low, high=math.inf if high is None else high)


def _ends(chosen: CaptionFilter) -> list[str]:
    """What the fields of _BOUNDED show of a filter."""
    ranges = {one.figure: (one.low, one.high) for one in chosen.ranges}
    ends = [end for figure in _BOUNDED for end in ranges.get(figure, (-math.inf, math.inf))]
    return [f"{end:.12g}" if math.isfinite(end) else "" for end in ends]
