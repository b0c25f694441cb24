"""Pieces of pages that all tabs share: what makes HTML clickable, announcements, remarks."""

from typing import Any

import gradio as gr

from foundry.errors import UserError
from studio.html import quiet

PRIVATE: dict[str, Any] = {"api_visibility": "private"}
"""What all events are: there is no API to call them by name."""
PICK = """
const chosen = (event) => {
  const button = event.target.closest("button");
  if (!button || !element.contains(button)) return;
  const data = button.dataset;
  if (data.pick === undefined && data.figure === undefined) return;
  trigger("select", {pick: data.pick, figure: data.figure, low: data.low, high: data.high, clear: data.clear || "",
    shift: event.shiftKey});
};
element.addEventListener("click", chosen);
element.addEventListener("keydown", (event) => {
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  const bar = event.target.closest(".bars button");
  if (!step || !bar) return;
  const bars = [...bar.parentElement.children];
  const next = bars[bars.indexOf(bar) + step];
  if (!next) return;
  bar.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
  event.preventDefault();
});
"""
"""Script of a gr.HTML: its buttons with data-pick or data-figure trigger `select`; the arrow keys move in a histogram."""


GUIDANCE_LIMITS = (-100.0, 100.0)
"""Guidance scales that can be asked for: far more than draws anything."""
SHOW_DETAIL = "() => { const one = document.querySelector('#detail .detail'); if (one) { one.focus(); } }"
"""Script that moves the focus, and with it the page, to what was chosen."""


KEEP_DETAIL = (
    "() => { const one = document.querySelector('#detail .detail'); "
    "if (one && document.activeElement === document.body) { one.focus({preventScroll: true}); } }"
)
"""Script that gives the focus back after what was chosen is shown anew, unless it is elsewhere already."""


def number_box(label: str, *, empty: str, elem_id: str | None = None) -> gr.Textbox:
    """A field for a number that may be left empty; `empty` says what that means."""
    return gr.Textbox(label=label, placeholder=empty, elem_id=elem_id, min_width=90)


def read_number(given: str | None, *, name: str, limits: tuple[float, float] = (-1e9, 1e9)) -> float | None:
    """The number in such a field; None for an empty one. Raises UserError for what is no number within the limits."""
    said = (given or "").strip()
    if not said:
        return None
    low, high = limits
    try:
        number = float(said)
    except ValueError:
        raise UserError(f"{name}: expected a number or nothing, found {said[:40]}") from None
    if not low <= number <= high:  # which nan is not either
        raise UserError(f"{name}: expected {low:,.15g} to {high:,.15g}, found {said[:40]}")
    return number


def read_whole(given: str | None, *, name: str) -> int | None:
    """The same for a whole number."""
    number = read_number(given, name=name)
    if number is not None and number != int(number):
        raise UserError(f"{name}: expected a whole number, found {number:g}")
    return None if number is None else int(number)


def announced(html: str) -> str:
    """HTML that a screen reader reads out when it changes."""
    return f'<div role="status" aria-live="polite">{html}</div>'


def hint(words: str) -> None:
    """Adds a remark to the page."""
    gr.HTML(quiet(words))
