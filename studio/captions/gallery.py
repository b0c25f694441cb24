"""Captions tab as plain functions: what a person did, as values, to what is shown, as HTML. Knows nothing of Gradio."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from dataset_builder.concepts.tagger import Noun
from dataset_builder.reviews.records import Flag
from foundry.errors import UserError
from studio.captions.caption_index import PAGE_ROWS, Cursor, Order
from studio.captions.filters import FIGURES, CaptionFilter, Range
from studio.captions.page import ShownCaption, detail_html, gallery_html, histograms_html
from studio.captions.reviewing import edit_caption, flag_captions, nouns_of
from studio.captions.source import PREVIEW, CaptionSource
from studio.captions.sql_box import SqlBox
from studio.html import reason

PICTURES = "/pictures"
_HEAD_START_S = 1.0
OrderName = str
ORDERS: dict[OrderName, Order] = {"as in the files": Order()}
ORDERS |= {f"most {name}": Order(figure=figure, direction="descending") for figure, name in FIGURES.items()}
ORDERS |= {f"fewest {name}": Order(figure=figure) for figure, name in FIGURES.items()}


@dataclass(frozen=True, kw_only=True)
class GalleryState:
    """What a person looks at: a source, a filter, an order, the beginnings of the pages so far, and the picked row."""

    source: int = 0
    chosen: CaptionFilter = field(default_factory=CaptionFilter)
    order: Order = field(default_factory=Order)
    starts: tuple[Cursor | None, ...] = (None,)
    following: Cursor | None = None
    version: str = ""
    """Name of the index that the numbers of rows are of."""
    picked: int | None = None
    seen: tuple[tuple[str, str], ...] = ()
    """Prompts of the picked image, and the texts that the person saw of them: an edit replaces no other."""
    awaits_nouns: bool = False
    """Whether the picked captions are shown without their nouns until the tagger is loaded."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A page: the new state, the gallery and a line about it."""

    state: GalleryState
    gallery: str
    line: str


class CaptionsTab:
    """Pages, filters, details, edits, flags and SQL over the sources of a studio."""

    def __init__(self, sources: Sequence[CaptionSource], sql: SqlBox) -> None:
        self.sources = sources
        self.sql = sql
        self._tagged: set[int] = set()

    def warm_up(self) -> None:
        """Has a thread load the taggers, which takes seconds, after the first page."""
        threading.Thread(target=self._load_taggers, name="studio-taggers", daemon=True).start()

    def _load_taggers(self) -> None:
        time.sleep(_HEAD_START_S)
        for number, source in enumerate(self.sources):
            with suppress(UserError, ModuleNotFoundError):  # whoever looks at a caption is told
                nouns_of(source, [])
            self._tagged.add(number)

    @property
    def marks_nouns(self) -> bool:
        """Whether the taggers are loaded, or known to be unavailable."""
        return len(self._tagged) == len(self.sources)

    def refresh(self) -> None:
        """Reads edits and flags again that other people saved, and looks whether runs have grown.

        Raises UserError for reviews that cannot be read.
        """
        for source in self.sources:
            source.refresh_reviews()
            source.follow()

    def show(self, state: GalleryState, *, on_wait: Callable[[str], None] = lambda _: None) -> Shown:
        """The page that a state is at, in the index that its other pages are of.

        The first one, without a filter, does not wait for an index.
        """
        source = self.sources[state.source]
        index = source.version(state.version)
        if index is None or index.name == PREVIEW:
            is_first = state.starts == (None,) and state.chosen == CaptionFilter() and state.order == Order()
            index = source.first() if is_first else source.index(on_wait=on_wait)
        page = index.page(state.chosen, state.order, after=state.starts[-1])
        picked = state.picked
        if picked is not None and state.version == PREVIEW != index.name:
            picked = index.number_of(source.first_rows([picked])[0])
        state = replace(state, following=page.after, version=index.name, picked=picked)
        gallery = gallery_html(page.rows, pictures=self._pictures(state), picked=state.picked)
        line = f"page {len(state.starts):,}"
        if index.name != PREVIEW:
            number = index.count(state.chosen)
            listed = index.count(state.chosen, figure=state.order.figure) if state.order.figure else number
            line = f"{number:,} caption{'' if number == 1 else 's'}, {line} of {max(1, -(-listed // PAGE_ROWS)):,}"
        else:
            line += f"; {source.progress}"
        return Shown(state=state, gallery=gallery, line=line)

    def next_page(self, state: GalleryState, *, on_wait: Callable[[str], None] = lambda _: None) -> Shown:
        """The page after this one, or this one where it is the last."""
        if state.following is None:
            return self.show(state, on_wait=on_wait)
        source = self.sources[state.source]
        after = state.following
        if state.version == PREVIEW and source.is_indexed:
            after = Cursor(n=source.index().number_of(source.first_rows([after.n])[0]))
        return self.show(replace(state, starts=(*state.starts, after), picked=None), on_wait=on_wait)

    def previous_page(self, state: GalleryState) -> Shown:
        """The page before this one, or this one where it is the first."""
        return self.show(replace(state, starts=state.starts[:-1] or (None,), picked=None))

    def histograms(self, state: GalleryState, *, on_wait: Callable[[str], None] = lambda _: None) -> str:
        """The histograms of the captions that meet the filter."""
        source = self.sources[state.source]
        of_pages = source.version(state.version) if state.version != PREVIEW else None
        index = of_pages or source.index(on_wait=on_wait)
        return histograms_html(index.histograms(state.chosen), state.chosen.ranges)

    def filtered(self, state: GalleryState, chosen: CaptionFilter, order: OrderName = "as in the files") -> GalleryState:
        """The state at the first page of another filter and order."""
        return GalleryState(source=state.source, chosen=chosen, order=ORDERS[order])

    def brushed(self, state: GalleryState, *, figure: str, low: float, high: float, extends: bool) -> GalleryState:
        """The state after a bar of a histogram was chosen; `extends` joins it to the range that is chosen already."""
        before = next((one for one in state.chosen.ranges if one.figure == figure), None)
        if extends and before:
            low, high = min(low, before.low), max(high, before.high)
        return replace(
            state,
            chosen=state.chosen.with_range(Range(figure=figure, low=low, high=high)),
            starts=(None,),
            picked=None,
        )

    def unbrushed(self, state: GalleryState, *, figure: str) -> GalleryState:
        """The state without a range of this figure."""
        return replace(state, chosen=state.chosen.without_range(figure), starts=(None,), picked=None)

    def choices(self, state: GalleryState) -> tuple[list[str], list[str]]:
        """The prompts and the statuses of the source's captions, as far as they are read."""
        index = self.sources[state.source].first()
        return index.values("prompt"), index.values("status")

    def pick(self, state: GalleryState, number: int) -> GalleryState:
        """The state after a person chose a picture, and sees its captions as they are now."""
        self.refresh()
        return self.look(replace(state, picked=number))

    def look(self, state: GalleryState) -> GalleryState:
        """The state of a person who sees the picked captions as they were read last."""
        return replace(state, seen=tuple((row["prompt"], row["edited"] or row["caption"]) for row in self.picked_rows(state)))

    def picked_rows(self, state: GalleryState) -> list[dict[str, Any]]:
        """The captions of the picked image in its source, that of the picked row first. Raises UserError if none is picked."""
        index = self.sources[state.source].version(state.version)
        rows = index.rows([state.picked]) if index and state.picked is not None else []
        if index is None or not rows:
            raise UserError("no caption is picked: choose one in the gallery")
        return [*rows, *(row for row in index.rows_of(rows[0]["key"]) if row["n"] != rows[0]["n"])]

    def detail(self, state: GalleryState, *, waits: bool = True) -> str:
        """The picked image with its captions of all prompts, and those of the other sources that have it.

        Without `waits`, nouns are marked only if the taggers are loaded.
        """
        own = self.picked_rows(state)
        found = [(self.sources[state.source], row) for row in own]
        for number, source in enumerate(self.sources):
            if number != state.source and source.is_indexed:
                found += [(source, row) for row in source.index().rows_of(own[0]["key"])]
        if waits or self.marks_nouns:
            nouns, problem = _nouns(found)
        else:
            nouns, problem = [None] * len(found), "the tagger is being loaded"
        shown = [
            ShownCaption(source=source.title, row=row, nouns=tagged) for (source, row), tagged in zip(found, nouns, strict=True)
        ]
        return detail_html(shown, picture=f"{self._pictures(state)}/{own[0]['n']}/large", problem=problem)

    def edit(self, state: GalleryState, *, prompt: str, text: str, by: str) -> str:
        """Saves a person's text in place of the one that they saw. Raises UserError as edit_caption does."""
        row = next((row for row in self.picked_rows(state) if row["prompt"] == prompt), None)
        seen = dict(state.seen).get(prompt)
        if row is None or seen is None:
            raise UserError(f"the picked image has no caption of the prompt {prompt or '(none)'}: choose one of its prompts")
        try:
            return edit_caption(self.sources[state.source], row, text, seen=seen, by=by)
        finally:
            self.refresh()

    def flag(self, state: GalleryState, *, prompts: Sequence[str], flag: Flag | str, by: str) -> str:
        """Flags captions of the picked image, or takes flags back by an empty one. Raises UserError as flag_captions does."""
        rows = [row for row in self.picked_rows(state) if row["prompt"] in prompts]
        if not rows:
            raise UserError("no caption is chosen: choose a prompt of the picked image")
        said = flag_captions(self.sources[state.source], rows, flag, by=by)  # type: ignore[arg-type]
        self.refresh()
        return said

    def _pictures(self, state: GalleryState) -> str:
        return f"{PICTURES}/{state.source}/{state.version}"


def _nouns(found: Sequence[tuple[CaptionSource, dict[str, Any]]]) -> tuple[list[list[Noun] | None], str]:
    """The nouns of each caption; none, and the reason, where the tagger is unavailable."""
    try:
        return [nouns_of(source, [row])[0] for source, row in found], ""
    except (UserError, ModuleNotFoundError) as error:
        return [None] * len(found), reason(error)
