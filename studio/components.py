"""Pieces of pages that all tabs share: what makes HTML clickable, announcements, remarks."""

import gradio as gr

from studio.html import quiet

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


SHOW_DETAIL = "() => { const one = document.querySelector('#detail .detail'); if (one) { one.focus(); } }"
"""Script that moves the focus, and with it the page, to what was chosen."""


def announced(html: str) -> str:
    """HTML that a screen reader reads out when it changes."""
    return f'<div role="status" aria-live="polite">{html}</div>'


def hint(words: str) -> None:
    """Adds a remark to the page."""
    gr.HTML(quiet(words))
